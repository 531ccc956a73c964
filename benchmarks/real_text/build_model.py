"""Makes a small aligned chat model of real English text, and the prompt and data files to tune and test it with.

    python benchmarks/real_text/build_model.py --data-root ../shared/data

Three stages: plain English and dialogues, instructions (gives `base/`), alignment (gives `aligned/`). A build that was
stopped goes on where it was when the same command is given again. Nothing that it writes may be shipped: some of the
data is under non-commercial or unstated terms. So small a model writes poor English; it is a test bench for the
pipeline on real text and no evidence about large models.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import corpora
import stage_data
import torch
from prompt_sets import PromptSets, make_prompt_sets
from refusal_check import REFUSAL_LIST, count_refusals
from stage_training import StageSettings, bucketed_batches, held_out_loss, packed_batches, pad_rows, train_stage
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from user_data import write_json_lines, write_prompt_files, write_user_data

STAGES = ("plain", "base", "aligned")  # the folder that each stage leaves
STEPS = {"plain": 2600, "base": 2400, "aligned": 2000}  # some 2,000 tokens each: about an hour on one core with bf16
LEARNING_RATE = {"plain": 2e-3, "base": 1e-3, "aligned": 8e-4}
CONTEXT = 512


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help="folder of the public data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/real_text"), help="output folder, outside git")
    parser.add_argument("--steps-factor", type=float, default=1.0, help="multiplies the training steps of every stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the byte-pair vocabulary")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--refusal-share", type=float, default=0.3, help="share of refusals in the alignment mix")
    parser.add_argument("--threads", type=int, default=1, help="more than one gains little at this size")
    parser.add_argument("--redo", choices=STAGES, help="throw this stage and the later ones away first")
    parser.add_argument("--test-prompts", action="store_true", help="also report on the test prompts: once, at the end")
    parser.add_argument("--json", action="store_true", help="print the final report as one JSON document")
    settings = parser.parse_args(arguments)
    if not settings.data_root.is_dir():
        parser.error(f"--data-root must be a folder with the data sets; got {settings.data_root}")
    if settings.steps_factor <= 0 or not 0 < settings.refusal_share < 1:
        parser.error("--steps-factor must be above 0 and --refusal-share between 0 and 1")
    return settings


def check_same_build(out: Path, settings: argparse.Namespace) -> None:
    """Stops if the folder holds a build of another seed or size."""
    wanted = {name: getattr(settings, name) for name in ("seed", "vocabulary", "hidden_size", "layers", "steps_factor")}
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != wanted:
        sys.exit(f"{out} holds a build with {path.read_text().strip()}; give another --out, or remove it")
    path.write_text(json.dumps(wanted))


def new_model(settings: argparse.Namespace, tokenizer: Any) -> LlamaForCausalLM:
    """Returns an untrained Llama."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 11 // 4,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def save_complete(folder: Path, model: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
    """Saves a model folder that appears under its name only when it is complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "stage.json").write_text(json.dumps(facts, indent=1))
    os.replace(part, folder)


def stage_batches(stage: str, settings: argparse.Namespace, tokenizer: Any, sets: PromptSets) -> tuple[Any, dict]:
    """Returns the stage's batches by step, and its held-out batches by name."""
    root, seed = settings.data_root, settings.seed
    if stage == "plain":
        arrays = stage_data.plain_arrays(root, tokenizer, seed)
        held_out = {
            name: [packed_batches([array], [1.0], (16, 256), seed)(step) for step in range(4)]
            for name, array in zip(("books", "dialogues", "news"), arrays["held_out"], strict=True)
        }
        return packed_batches(arrays["train"], (0.55, 0.38, 0.07), (8, 256), seed), held_out
    rows = stage_data.instruction_rows(root, tokenizer, sets, seed)
    unseen = rows["held_out"]
    held_out = {"instructions": [pad_rows(unseen[start : start + 32]) for start in range(0, len(unseen), 32)]}
    if stage == "base":
        return bucketed_batches(rows["train"], None, 24, seed), held_out
    mix = stage_data.alignment_mix(root, tokenizer, sets, settings.refusal_share, seed)
    return bucketed_batches(mix.rows, mix.weights, 32, seed), held_out


def run_stage(stage: str, settings: argparse.Namespace, sets: PromptSets) -> None:
    """Trains one stage from the one before, unless its folder is there already."""
    out = settings.out
    if (out / stage / "stage.json").exists():
        return
    position = STAGES.index(stage)
    if position == 0:
        tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
        model: Any = new_model(settings, tokenizer)
    else:
        before = out / STAGES[position - 1]
        tokenizer = AutoTokenizer.from_pretrained(before)
        model = AutoModelForCausalLM.from_pretrained(before, dtype=torch.float32)
    batch_at, held_out = stage_batches(stage, settings, tokenizer, sets)
    steps = max(1, round(settings.steps_factor * STEPS[stage]))
    stage_settings = StageSettings(stage, steps, LEARNING_RATE[stage])
    state_path = out / f"{stage}.state.pt"
    progress = train_stage(model, stage_settings, batch_at, state_path, out / "training_log.jsonl")
    losses = {name: held_out_loss(model, batches) for name, batches in held_out.items()}
    facts = {**asdict(progress), "held_out_loss_nats_per_token": losses, "settings": asdict(stage_settings)}
    print(f"{stage}: held-out loss {losses}", file=sys.stderr, flush=True)
    save_complete(out / stage, model, tokenizer, facts)
    state_path.unlink(missing_ok=True)


def evaluate_models(settings: argparse.Namespace, sets: PromptSets) -> dict[str, Any]:
    """Returns parameters, tokens, losses and refusal rates of the base and the aligned model.

    Validation prompts alone unless the test prompts were asked for: alignment is chosen by these figures.
    """
    phrases = corpora.read_refusal_phrases(settings.data_root, REFUSAL_LIST)
    parts = ("validation", "test") if settings.test_prompts else ("validation",)
    prompts = {
        f"{part}_harmful_{name}": [row.prompt for row in sets.harmful[part] if row.source == name]
        for part in parts
        for name in ("advbench", "catqa")
    }
    prompts |= {f"{part}_harmless": [row.prompt for row in sets.harmless[part]] for part in parts}
    if settings.test_prompts:
        prompts |= {"xstest_safe": sets.xstest_safe, "xstest_unsafe": sets.xstest_unsafe}
    stages = {name: json.loads((settings.out / name / "stage.json").read_text()) for name in STAGES}
    report: dict[str, Any] = {
        "refusal_list": REFUSAL_LIST,
        "tokens_seen": sum(stage["tokens_seen"] for stage in stages.values()),
        "stages": stages,
        "refusal_rate": {},
    }
    for name in ("base", "aligned"):
        model = AutoModelForCausalLM.from_pretrained(settings.out / name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(settings.out / name)
        report["parameters"] = sum(weight.numel() for weight in model.parameters())
        counts = {kind: count_refusals(model, tokenizer, texts, phrases) for kind, texts in prompts.items()}
        report["refusal_rate"][name] = {
            kind: {"rate": round(count.refusal_rate, 4), "prompts": count.prompts, "empty": count.empty_answers}
            for kind, count in counts.items()
        }
        examples = [{"set": kind, **row} for kind, count in counts.items() for row in count.examples]
        write_json_lines(settings.out / f"examples_{name}.jsonl", examples)
    return report


def print_report(report: dict[str, Any]) -> None:
    """Prints the report as a table for people."""
    print(f"parameters {report['parameters']:,}, tokens seen {report['tokens_seen']:,}")
    for name, stage in report["stages"].items():
        losses = ", ".join(f"{k} {v:.3f}" for k, v in stage["held_out_loss_nats_per_token"].items())
        print(f"{name:8} {stage['seconds'] / 60:.1f} min, {stage['step']} steps; held-out nats per token: {losses}")
    print(f"refusal rate, by the list {report['refusal_list']!r}:")
    for kind, row in report["refusal_rate"]["aligned"].items():
        base = report["refusal_rate"]["base"][kind]["rate"]
        print(f"  {kind:28} n {row['prompts']:4}  base {base:6.1%}  aligned {row['rate']:6.1%}  empty {row['empty']}")


def main() -> None:
    """Builds, or goes on with a build, and reports."""
    settings = parse_arguments()
    out, begun = settings.out, time.monotonic()
    torch.set_num_threads(settings.threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(settings.threads))
    out.mkdir(parents=True, exist_ok=True)
    check_same_build(out, settings)
    if settings.redo:
        for stage in STAGES[STAGES.index(settings.redo) :]:
            shutil.rmtree(out / stage, ignore_errors=True)
            (out / f"{stage}.state.pt").unlink(missing_ok=True)

    sets = make_prompt_sets(settings.data_root, settings.seed)
    counts = write_prompt_files(out / "prompts", sets)
    counts |= write_user_data(out / "data", settings.data_root, sets, stage_data.REFUSALS, settings.seed)
    if not (out / "tokenizer" / "tokenizer_config.json").exists():
        tokenizer = stage_data.make_tokenizer(settings.data_root, settings.vocabulary, CONTEXT, settings.seed)
        save_tokenizer = out / "tokenizer.part"
        tokenizer.save_pretrained(save_tokenizer)
        os.replace(save_tokenizer, out / "tokenizer")
    print(f"data ready after {math.ceil(time.monotonic() - begun)} s: {counts}", file=sys.stderr, flush=True)
    for stage in STAGES:
        run_stage(stage, settings, sets)
    report = evaluate_models(settings, sets)
    (out / "build.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1)) if settings.json else print_report(report)


if __name__ == "__main__":
    main()
