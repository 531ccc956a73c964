"""Answers a second: our batched generation against one prompt at a time.

The baseline is what a plain evaluation script does: `model.generate` for each prompt on its own, greedy, with the same
chat template and the same longest answer. Both must give the same answers; otherwise the program fails, because a
speed-up that changes the answers is none.

    python benchmarks/generation.py --json
    python benchmarks/generation.py --model path/to/model --prompts prompts.txt --max-new-tokens 64
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from securetune import models
from securetune.artifacts import environment
from securetune.data.prompts import Prompt
from securetune.evaluation import generate_answers, load_suite
from securetune.evaluation.generation import greedy_settings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-world", help="embedded model, folder or hub name")
    parser.add_argument("--prompts", default="tiny-world-harmless", help="registered suite or file of prompts")
    parser.add_argument("--count", type=int, default=114, help="prompts to answer")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="longest answer, in tokens")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts a batch")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each; the fastest counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(json.dumps(result, indent=2) if arguments.json else _sentence(result))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both ways of answering the same prompts.

    Raises:
        SystemExit: If their answers differ.
    """
    model = models.load(arguments.model)
    prompts = list(load_suite(arguments.prompts, arguments.count).prompts)
    one_at_a_time, expected = _fastest(lambda: _plain(model, prompts, arguments.max_new_tokens), arguments.repeats)
    batched, found = _fastest(
        lambda: _batched(model, prompts, arguments.max_new_tokens, arguments.batch_size), arguments.repeats
    )
    differing = sum(ours != reference for ours, reference in zip(found, expected, strict=True))
    if differing:
        raise SystemExit(f"{differing} of {len(prompts)} answers differ between batched and single generation")
    return {
        "model": arguments.model,
        "prompts": len(prompts),
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "one_at_a_time": {"seconds": one_at_a_time, "responses_per_second": len(prompts) / one_at_a_time},
        "batched": {"seconds": batched, "responses_per_second": len(prompts) / batched},
        "speedup": one_at_a_time / batched,
        "same_answers": True,
        "environment": environment(),
    }


def _fastest(work: Any, repeats: int) -> tuple[float, list[str]]:
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        answers = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), answers


def _plain(model: models.ChatModel, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
    """Answer one prompt at a time with transformers' `generate`."""
    settings = greedy_settings(model, max_new_tokens)
    network: Any = model.model
    answers = []
    for prompt in prompts:
        encoded: Any = model.tokenizer.apply_chat_template(
            [dict(message) for message in prompt.messages],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        encoded = encoded.to(model.model.device)
        encoded.pop("token_type_ids", None)
        with torch.inference_mode():
            output = network.generate(**encoded, generation_config=settings)
        new = output[0, encoded["input_ids"].shape[1] :]
        answers.append(str(model.tokenizer.decode(new, skip_special_tokens=True)).strip())
    return answers


def _batched(model: models.ChatModel, prompts: list[Prompt], max_new_tokens: int, batch_size: int) -> list[str]:
    answers = generate_answers(model, [prompt.messages for prompt in prompts], max_new_tokens, batch_size)
    return [answer.text for answer in sorted(answers)]


def _sentence(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}: {result['batched']['responses_per_second']:.0f} answers a second in batches of "
        f"{result['batch_size']}, {result['one_at_a_time']['responses_per_second']:.0f} one at a time "
        f"({result['speedup']:.1f} times as fast, the same answers)"
    )


if __name__ == "__main__":
    main()
