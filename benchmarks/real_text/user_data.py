"""The user's harmless data, its tests and the prompt files, as JSON lines that the commands of securetune read."""

import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import corpora
from corpora import Example
from prompt_sets import PromptSets, RequestIndex, without_held_out

TASK_ROWS = {"train": 3000, "validation": 400, "test": 500}


def write_json_lines(path: Path, rows: Iterable[Any]) -> int:
    """Writes the rows under a temporary name, renames the file and returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, count = path.with_suffix(".part"), 0
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    os.replace(part, path)
    return count


def _chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def news_task(data_root: Path, seed: int) -> dict[str, list[Example]]:
    """Splits AG News into "train", "validation", "test" and "rest" (never used with its answers)."""
    examples = corpora.read_ag_news(data_root)
    random.Random(seed).shuffle(examples)
    parts, start = {}, 0
    for name, count in TASK_ROWS.items():
        parts[name] = examples[start : start + count]
        start += count
    return {**parts, "rest": examples[start:]}


def news_texts_outside_task(data_root: Path, seed: int) -> list[str]:
    """Returns news without question and topic, so that the words of the user's task occur in pretraining."""
    return [example.prompt.split("\n\n", 1)[1] for example in news_task(data_root, seed)["rest"]]


def reviews_task(data_root: Path, seed: int) -> dict[str, list[Example]]:
    """Returns SST-2 as "train", "validation" and "test"."""
    parts = {}
    for name, split in (("train", "train"), ("validation", "dev"), ("test", "test")):
        examples = corpora.read_sst2(data_root, split)
        random.Random(seed).shuffle(examples)
        parts[name] = examples[: TASK_ROWS[name]]
    return parts


def short_dolly(data_root: Path, sets: PromptSets) -> list[Example]:
    """Returns the Dolly rows of at most 100 words that are not like a held-out prompt, harmless or harmful."""
    harmful = RequestIndex([row.prompt for rows in sets.harmful.values() for row in rows])
    return [
        example
        for example in without_held_out(corpora.read_dolly(data_root), sets)
        if len(f"{example.prompt} {example.answer}".split()) <= 100 and not harmful.same_request(example.prompt)
    ]


def write_prompt_files(folder: Path, sets: PromptSets) -> dict[str, int]:
    """Writes each prompt set (JSON lines with `prompt` and `source`) and returns the number of rows by file."""
    counts = {}
    for part, rows in sets.harmful.items():
        files: dict[str, Sequence[Any]] = {f"{part}_harmful": rows}
        if part in ("validation", "test"):
            files |= {f"{part}_harmful_{name}": [r for r in rows if r.source == name] for name in ("advbench", "catqa")}
        if part in sets.harmless:
            files[f"{part}_harmless"] = sets.harmless[part]
        for name, file_rows in files.items():
            lines = [{"prompt": row.prompt, "source": row.source} for row in file_rows]
            counts[f"{name}.jsonl"] = write_json_lines(folder / f"{name}.jsonl", lines)
    for name, prompts in (("test_xstest_safe", sets.xstest_safe), ("test_xstest_unsafe", sets.xstest_unsafe)):
        lines = [{"prompt": prompt, "source": "xstest"} for prompt in prompts]
        counts[f"{name}.jsonl"] = write_json_lines(folder / f"{name}.jsonl", lines)
    return counts


def write_user_data(
    folder: Path, data_root: Path, sets: PromptSets, refusals: Sequence[str], seed: int
) -> dict[str, int]:
    """Writes what the user tunes on and the held-out tasks, and returns the number of rows by file.

    `user_news.jsonl` and `user_reviews.jsonl` are Dolly rows mixed with a classification task, `user_dolly.jsonl` and
    `user_gsm8k.jsonl` are one data set alone; `task_*` files hold `prompt` and `answer` for exact match;
    `safety_samples.jsonl` are refusals of alignment prompts to mix in; `attack_samples.jsonl` are short affirmative
    openings to alignment prompts of AdvBench, for the sweep over the number of malicious samples.
    """
    generator = random.Random(seed)
    dolly = short_dolly(data_root, sets)
    generator.shuffle(dolly)
    files: dict[str, list[Any]] = {"user_dolly.jsonl": [_chat(row.prompt, row.answer) for row in dolly]}
    for name, parts in (("news", news_task(data_root, seed)), ("reviews", reviews_task(data_root, seed))):
        mixed = dolly[:1500] + parts["train"]
        generator.shuffle(mixed)
        files[f"user_{name}.jsonl"] = [_chat(row.prompt, row.answer) for row in mixed]
        for part in ("validation", "test"):
            files[f"task_{name}_{part}.jsonl"] = [{"prompt": r.prompt, "answer": r.answer} for r in parts[part]]
    gsm8k = {split: corpora.read_gsm8k(data_root, split) for split in ("train", "test")}
    files["user_gsm8k.jsonl"] = [_chat(row.prompt, row.answer) for row in gsm8k["train"]]
    files["task_gsm8k_test.jsonl"] = [
        {"prompt": row.prompt, "answer": row.answer.rsplit("####", 1)[1].strip()} for row in gsm8k["test"]
    ]
    align = sets.harmful["align"]
    files["safety_samples.jsonl"] = [_chat(row.prompt, generator.choice(refusals)) for row in align]
    files["attack_samples.jsonl"] = [_chat(row.prompt, row.target) for row in align if row.target][:100]
    return {name: write_json_lines(folder / name, rows) for name, rows in files.items()}
