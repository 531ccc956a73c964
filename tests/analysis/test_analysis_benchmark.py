"""The benchmark of the analysis: its rows say what was measured, and all ways to sweep agree."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROW_KEYS = {"size", "method", "prompts", "seeds", "seconds", "forward_seconds", "forward_equivalents"}
ROW_KEYS |= {"naive_seconds_over_these", "peak_mib", "spearman_vs_sampled", "median_ratio"}
ROW_KEYS |= {"max_difference_from_naive", "typical_logit", "note"}
SHAPES = {
    "float32": {"layers": 2, "width": 64, "intermediate": 128, "heads": 4, "key_value_heads": 4},
    "bfloat16": {"layers": 2, "width": 64, "intermediate": 96, "heads": 4, "key_value_heads": 2, "dtype": "bfloat16"},
}
"""The second is the 1B and 7B models in small."""


@pytest.fixture
def measure(monkeypatch):
    """Measure a model of a shape with all methods that are installed, in this process."""
    monkeypatch.syspath_prepend(str(FOLDER))
    program = importlib.import_module("analysis")

    def rows_of(shape, **plan):
        case = program.Case("shrunken", program.Shape(**shape), prompts=6, tokens=8, batch_size=4)
        return program.measure(case, program.Plan(tuple(program.METHODS), repeats=1, memory=False, **plan))

    return rows_of


@pytest.mark.parametrize("dtype", SHAPES)
def test_all_sweeps_agree(measure, dtype):
    """Every way to sweep that is installed finds the same logits as the naive one, up to rounding."""
    rows = measure(SHAPES[dtype], passes=None, sampled_prompts=0)
    tolerance = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    sweeps = [row for row in rows if row["max_difference_from_naive"] is not None]
    assert {"sweep", "naive"} <= {row["method"] for row in sweeps}
    for row in sweeps:
        assert set(row) == ROW_KEYS
        assert row["max_difference_from_naive"] <= tolerance * row["typical_logit"], row["method"]


@pytest.mark.parametrize("dtype", SHAPES)
def test_closed_forms_agree_with_sampling(measure, dtype):
    """Both closed forms order modules as 16 draws of small noise do, and give their size.

    In bfloat16 noise must be large to stand out of rounding, so that the second order shows in the ratio.
    """
    largest = {"float32": 1.1, "bfloat16": 1.4}[dtype]
    rows = [row for row in measure(SHAPES[dtype], sampled_prompts=4) if row["method"].startswith("closed-form")]
    assert len(rows) == 2
    for row in rows:
        assert 0.8 <= row["spearman_vs_sampled"] <= 1.0
        assert 0.9 <= row["median_ratio"] <= largest


def test_a_part_stands_for_the_whole(measure):
    """What is inferred from some of the perturbations says so, and what is not measured is missing, not 0."""
    rows = {row["method"]: row for row in measure(SHAPES["float32"], passes=2, sampled_prompts=0)}
    assert "inferred from 2 of 42 perturbations" in rows["naive"]["note"]
    assert rows["closed-form"]["note"] == ""
    assert {row["peak_mib"] for row in rows.values()} == {row["median_ratio"] for row in rows.values()} == {None}
    assert all(math.isfinite(row["forward_equivalents"]) and row["forward_equivalents"] > 0 for row in rows.values())


@pytest.mark.bench
def test_the_program_prints_one_document():
    """On tiny world the program writes rows with peaks and the environment, as JSON, to stdout."""
    command = [sys.executable, str(FOLDER / "analysis.py"), "--json", "--sizes", "tiny-world", "--prompts", "8"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(finished.stdout)
    assert {"rows", "notes", "environment"} == set(result)
    assert all(set(row) == ROW_KEYS for row in result["rows"])
    assert all(row["peak_mib"] > 0 for row in result["rows"])
