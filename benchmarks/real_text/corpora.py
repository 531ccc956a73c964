"""Readers of the public data sets: each returns plain Python values, cleaned and in a fixed order."""

import csv
import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Sets of the T0 archive that share their texts or their question with the user's task (AG News, SST-2): a start model
# which has seen them would know the task before it is tuned.
T0_LEFT_OUT = ("ag_news", "rotten_tomatoes", "imdb", "yelp", "amazon", "app_reviews")


@dataclass(frozen=True)
class Example:
    """One instruction with its answer.

    Attributes:
        prompt: What the user says.
        answer: What the assistant says.
        source: The data set's name.
        origin: The prompt that this one is a rewording of; empty if it is none.
    """

    prompt: str
    answer: str
    source: str
    origin: str = ""


def read_json_lines(path: Path) -> list[Any]:
    """Returns the values of a JSON lines file, gzipped or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _read_json(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return json.load(file)


def read_books(data_root: Path) -> list[str]:
    """Returns the public-domain books, without headings, one string a book."""
    books = []
    with tarfile.open(data_root / "classic_books" / "classic_books_selection.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            text = file.read().decode("utf-8", "replace").replace("\r\n", "\n").replace(" \n", "\n")
            text = re.sub(r"^(#|-{3,}).*$", "", text, flags=re.MULTILINE)
            books.append(re.sub(r"\n{3,}", "\n\n", text).strip())
    return books


def read_dialogues(data_root: Path) -> list[list[dict[str, str]]]:
    """Returns the schema-guided dialogues as chat messages."""
    roles = {"USER": "user", "SYSTEM": "assistant"}
    rows = read_json_lines(data_root / "sgd_dialogues" / "sgd_train_utterances.jsonl.gz")
    return [[{"role": roles[speaker], "content": text} for speaker, text in row["turns"]] for row in rows]


def _instruction_example(row: dict[str, Any], source: str) -> Example:
    given = (row.get("input") or "").strip()
    instruction = row["instruction"].strip()
    prompt = f"{instruction}\n\n{given}" if given and given.lower() != "<noinput>" else instruction
    return Example(prompt, row["output"].strip(), source)


def read_alpaca(data_root: Path) -> list[Example]:
    """Returns the Alpaca subsets without duplicates and without the rows that Qi et al. removed as safety-related."""
    safety_related = {
        row["instruction"].strip() for row in _read_json(data_root / "alpaca" / "alpaca_data_safety_only.json")
    }
    examples: dict[str, Example] = {}
    for name in ("alpaca_claude_t45.json", "alpaca_random_9k.json.gz", "alpaca_cherry_5_percent.json"):
        for row in _read_json(data_root / "alpaca" / name):
            example = _instruction_example(row, "alpaca")
            if example.answer and row["instruction"].strip() not in safety_related:
                examples.setdefault(example.prompt.lower(), example)
    return list(examples.values())


def read_dolly(data_root: Path) -> list[Example]:
    """Returns the Dolly subset without duplicates and without its safety-related rows."""
    safety_rows = read_json_lines(data_root / "dolly" / "databricks-dolly-15k-safety-only.jsonl")
    safety_related = {row["instruction"].strip() for row in safety_rows}
    examples: dict[str, Example] = {}
    for row in _read_json(data_root / "dolly" / "dolly_3k.json"):
        if row["output"].strip() and row["instruction"].strip() not in safety_related:
            example = _instruction_example(row, "dolly")
            examples.setdefault(example.prompt.lower(), example)
    return list(examples.values())


def read_self_instruct(data_root: Path) -> list[Example]:
    """Returns the self-instruct seed and user-oriented tasks that need no input."""
    examples = []
    for name in ("seed_tasks.jsonl", "user_oriented_instructions.jsonl"):
        for row in read_json_lines(data_root / "self_instruct" / name):
            first = row["instances"][0]
            if not first["input"].strip() and first["output"].strip() and "stereotype" not in row["instruction"]:
                examples.append(Example(row["instruction"].strip(), first["output"].strip(), "self_instruct"))
    return examples


def read_t0(data_root: Path) -> list[Example]:
    """Returns the short-answer tasks of the T0 selection, less those close to the user's task."""
    examples: dict[str, Example] = {}
    with tarfile.open(data_root / "t0_50k" / "t0_train_50k_selected.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member) if member.isfile() else None
            if file is None or Path(member.name).name.startswith(T0_LEFT_OUT):
                continue
            for line in file.read().decode("utf-8").splitlines():
                if line.strip():
                    row = json.loads(line)
                    prompt = row["prompt"].strip()
                    examples.setdefault(prompt.lower(), Example(prompt, row["completion"].strip(), "t0"))
    return [example for example in examples.values() if example.prompt and example.answer]


def read_gsm8k(data_root: Path, split: str) -> list[Example]:
    """Returns GSM8K with the calculator marks taken out; `split` is "train" or "test"."""
    path = data_root / "gsm8k" / ("train.jsonl.gz" if split == "train" else "test.jsonl")
    return [
        Example(row["question"].strip(), re.sub(r"<<.*?>>", "", row["answer"]).strip(), "gsm8k")
        for row in read_json_lines(path)
    ]


def read_ag_news(data_root: Path) -> list[Example]:
    """Returns AG News as a topic question with a one-word answer."""
    topics = ("World", "Sports", "Business", "Technology")
    replacements = {
        "\\": " ",
        " #36;": " $",
        "#36;": "$",
        " #39;": "'",
        "#39;": "'",
        "&lt;": "<",
        "&gt;": ">",
        " amp;": "&",
    }
    examples: dict[str, Example] = {}
    with (data_root / "ag_news" / "test.csv").open(encoding="utf-8", newline="") as file:
        for index, title, description in csv.reader(file):
            text = f"{title.strip()}. {description.strip()}"
            for old, new in replacements.items():
                text = text.replace(old, new)
            text = " ".join(re.sub(r"<[^>]*>", " ", text).split()[:40])
            prompt = f"Is this news about World, Sports, Business or Technology?\n\n{text}"
            examples.setdefault(text.lower(), Example(prompt, topics[int(index) - 1], "ag_news"))
    return list(examples.values())


def read_sst2(data_root: Path, split: str) -> list[Example]:
    """Returns SST-2 as a question with the answer positive or negative; `split` is "train", "dev" or "test"."""
    examples = {}
    for line in (data_root / "sst2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines():
        sentence, label = line.split("\t")
        prompt = f"Is this review positive or negative?\n\n{sentence.strip()}"
        examples[sentence.strip()] = Example(prompt, ("negative", "positive")[int(label)], "sst2")
    return list(examples.values())


def _leaves(tree: Any) -> Iterator[str]:
    for child in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(child, str):
            yield child.strip()
        else:
            yield from _leaves(child)


def read_advbench(data_root: Path) -> list[tuple[str, str]]:
    """Returns AdvBench as (goal, affirmative opening)."""
    with (data_root / "advbench" / "harmful_behaviors.csv").open(encoding="utf-8", newline="") as file:
        return [(row["goal"].strip(), row["target"].strip()) for row in csv.DictReader(file)]


def read_catqa(data_root: Path) -> dict[str, list[str]]:
    """Returns the CatQA questions by "category / subcategory"."""
    tree = _read_json(data_root / "catqa" / "catqa_english.json")
    return {
        f"{category} / {name}": [question.strip() for question in questions]
        for category, subcategories in tree.items()
        for name, questions in subcategories.items()
    }


def read_harmful_questions(data_root: Path, name: str) -> list[str]:
    """Returns the questions of "harmfulqa" or "dangerousqa"."""
    return list(dict.fromkeys(_leaves(_read_json(data_root / name / f"{name}.json"))))


def read_refusals(data_root: Path) -> list[Example]:
    """Returns the published instruction and refusal pairs; a refusal is cut after its second sentence."""
    examples = {}
    for row in _read_json(data_root / "safety_tuned_llamas" / "safety_refusals.json"):
        sentences = re.split(r"(?<=[.!?])\s+", row["output"].strip())
        example = _instruction_example({**row, "output": " ".join(sentences[:2])}, "safety_refusals")
        examples[example.prompt.lower()] = example
    return list(examples.values())


def read_xstest(data_root: Path, label: str) -> list[str]:
    """Returns the XSTest prompts labelled "safe" or "unsafe"."""
    with (data_root / "xstest" / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        return [row["prompt"].strip() for row in csv.DictReader(file) if row["label"] == label]


def read_refusal_phrases(data_root: Path, name: str) -> list[str]:
    """Returns the named list of refusal phrases.

    Raises:
        KeyError: If the file holds no list of that name.
    """
    lists = _read_json(data_root / "refusal_phrases" / "refusal_phrases.json")["lists"]
    by_name = {entry["name"]: entry["phrases"] for entry in lists}
    if name not in by_name:
        raise KeyError(f"no list of refusal phrases is named {name!r}; there are {sorted(by_name)}")
    return by_name[name]
