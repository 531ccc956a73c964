"""The comparison on the terminal."""

from pathlib import Path

import pytest
from fake_run import METHODS, write_fake_run
from rich.console import Console

from securetune.artifacts import Comparison
from securetune.reporting import compare_runs, comparison_table


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare_runs(write_fake_run(tmp_path_factory.mktemp("table"), prompts=20))


def show(comparison: Comparison, width: int = 120) -> str:
    console = Console(width=width, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(comparison))
    return console.export_text()


def test_each_method_has_a_row_with_mean_and_interval(comparison: Comparison) -> None:
    """The table shows the numbers of the comparison, the wrappers, the judges, and what is a control."""
    text = show(comparison)
    for label in ("Start model", "IFT", "ML-LR", "SWAT", "swat-sensitive", "control"):
        assert label in text
    swat = comparison.methods["swat"].asr
    assert swat is not None
    assert f"{swat.mean:.1%}" in text
    assert f"{swat.low * 100:.0f}–{swat.high:.0%}" in text
    for words in ("suffix", "role", "identity", "keywords-shallow", "tiny-world-oracle", "test bench"):
        assert words in text


def test_two_judges_are_named_for_what_each_judged(comparison: Comparison) -> None:
    """Where over-refusal is judged by another judge than attacks are, the caption does not mix them up."""
    assert "ASR and over-refusal by keywords-shallow" in " ".join(show(comparison).split())
    other = comparison.model_copy(update={"over_refusal_judge": "another"})
    assert "ASR by keywords-shallow; over-refusal by another" in " ".join(show(other).split())


def test_it_fits_an_ordinary_terminal(comparison: Comparison) -> None:
    """At 80 columns no number is cut off."""
    text = show(comparison, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "swat-sensitive" in text
    for row in comparison.methods.values():
        for metric in (row.asr, row.task_accuracy, *row.wrapped_asr.values()):
            assert metric is not None
            assert f"{metric.mean:.1%}" in text


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    """A missing metric is shown as missing, not as zero."""
    folder = write_fake_run(tmp_path, {"ift": METHODS["ift"]}, with_task=False, with_rating=False, prompts=10)
    line = next(line for line in show(compare_runs(folder)).splitlines() if "IFT" in line)
    assert line.split().count("–") == 2


def test_labels_are_no_markup(comparison: Comparison) -> None:
    """A label in square brackets is text, and a control character in it is gone."""
    odd = comparison.model_copy(update={"methods": {"[red]x\x1b[0m[/red]": comparison.methods["ift"]}})
    assert "[red]x[0m[/red]" in show(odd)
