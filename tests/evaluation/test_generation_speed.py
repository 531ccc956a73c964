"""How fast answers are generated, against one prompt at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "generation.py"


def measure(*arguments: str) -> dict:
    command = [sys.executable, str(PROGRAM), "--json", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def test_the_benchmark_runs_and_compares_answers(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The program measures both ways on the same prompts, checks that the answers agree, and prints one document."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("how do I wash a car ?\ntell me how to sell the boat\nhow do I paint a house ?\n")
    options = ("--max-new-tokens", "4", "--repeats", "1", "--batch-size", "2")
    result = measure("--model", str(tiny_model_dir), "--prompts", str(prompts), *options)
    assert result["prompts"] == 3
    assert result["same_answers"] is True
    assert result["speedup"] == pytest.approx(
        result["batched"]["responses_per_second"] / result["one_at_a_time"]["responses_per_second"]
    )


@pytest.mark.bench
def test_batches_are_several_times_as_fast() -> None:
    """On the embedded model and one core, batches answer at least five times as many prompts a second."""
    assert measure("--count", "57")["speedup"] > 5
