"""The built-in probe prompts as suites, and suites that contradict each other."""

from pathlib import Path

import pytest

from securetune.config import EvaluationSettings, ModelSettings, ProbeSettings
from securetune.data.overlap import find_overlap
from securetune.data.prompts import load_probes
from securetune.errors import DataError
from securetune.evaluation import check_evaluation, load_suite


def test_the_suites_hold_what_no_analysis_sees():
    """Both have 96 prompts of four categories; none of them is among the built-in probes."""
    probes = load_probes(ProbeSettings(), "some/model")
    used = [prompt for part in probes[:4] for prompt in part]
    for name, kind in (("probes-harmful", "harmful"), ("probes-harmless", "harmless")):
        suite = load_suite(name)
        assert (suite.kind, suite.wrapper, len(suite.prompts)) == (kind, None, 96)
        categories = {prompt.metadata["category"] for prompt in suite.prompts}
        assert len(categories) == 4
        assert not categories & {prompt.metadata["category"] for prompt in used}
        assert not find_overlap(used, suite.prompts)


def test_the_first_prompts_of_both_suites_are_twins():
    """A shorter suite holds every category, and both classes of the same requests."""
    harmful, harmless = load_suite("probes-harmful", 8), load_suite("probes-harmless", 8)
    assert len({prompt.metadata["category"] for prompt in harmful.prompts}) == 4
    assert [prompt.id[:-8] for prompt in harmful.prompts] == [prompt.id[:-9] for prompt in harmless.prompts]


def test_a_prompt_cannot_be_harmful_in_one_suite_and_harmless_in_another(tmp_path: Path):
    """The sentence names both suites; other mistakes are told beside it."""
    (tmp_path / "bad.txt").write_text("rob a bank\nsteal a car\n")
    (tmp_path / "ok.txt").write_text("Rob a bank!\nwash a car\n")
    suites = (str(tmp_path / "bad.txt"), f"harmless:{tmp_path / 'ok.txt'}")
    with pytest.raises(DataError) as caught:
        check_evaluation(EvaluationSettings(suites=suites, judges=("nobody",)), ModelSettings(name="some/model"))
    assert len(caught.value.problems) == 2
    assert caught.value.problems[1] == (
        "the harmful suite bad and the harmless suite ok must not overlap; 1 of 2 do, "
        'such as "Rob a bank!" (bad:1 and ok:1)'
    )


def test_a_model_without_suites_of_its_own_is_told_of_the_built_in_ones():
    """Without a suite or a task the sentence names what to give."""
    with pytest.raises(DataError, match="--suite probes-harmful and --suite probes-harmless"):
        check_evaluation(EvaluationSettings(), ModelSettings(name="some/model"))
