"""`comparison.json`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_run import CHOSEN, KEYWORDS, METHODS, ORACLE, START, Outcome, write_fake_run

from securetune.artifacts import Response, Scores, read_artifact, read_json_lines, read_responses, write_json
from securetune.errors import ArtifactError
from securetune.reporting import compare_runs
from securetune.tiny_world.tokenizer import CHAT_TEMPLATE

WRAPPED = {"tiny-world-suffix", "tiny-world-role-play", "tiny-world-identity-shift"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def own_run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def change_scores(path: Path, **changes: Any) -> None:
    write_json(path, read_artifact(path, Scores).model_copy(update=changes))


def test_the_document_has_the_promised_shape(run_folder: Path) -> None:
    """Programs find each method's metrics with mean, low, high and one value a seed, the modules and the agreement."""
    document = json.loads(compare_runs(run_folder).model_dump_json())
    assert list(document["methods"]) == ["start", *METHODS]
    for label, row in document["methods"].items():
        for metric in ("asr", "harmfulness", "task_accuracy", "over_refusal"):
            assert row[metric].keys() == {"mean", "low", "high", "per_seed"}
            assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
            assert len(row[metric]["per_seed"]) == (1 if label == "start" else 3)
        assert set(row["wrapped_asr"]) == WRAPPED
    assert document["robust_modules"] == CHOSEN
    assert document["closed_form_vs_sampled"]["spearman"] == 0.94
    assert document["closed_form_vs_sampled"]["median_ratio"] == 0.98
    assert document["seconds"] == 214.6
    assert (document["asr_judge"], document["harmfulness_judge"]) == (KEYWORDS, ORACLE)


def test_the_numbers_are_those_of_the_responses(run_folder: Path) -> None:
    """ASR, harmfulness, accuracy and over-refusal equal plain counts over the saved answers."""
    row = compare_runs(run_folder).methods["swat"]
    for place, seed in enumerate(row.seeds):
        folder = run_folder / "methods" / "swat" / f"seed-{seed}" / "evaluation"

        def read(suite: str, folder: Path = folder) -> list[Response]:
            rows = read_json_lines(folder / suite / "responses.jsonl")
            return [Response.model_validate(answer) for answer in rows]

        harmful, harmless, task = read("tiny-world-harmful"), read("tiny-world-harmless"), read("tiny-world-query")
        succeeded = [answer.verdicts[KEYWORDS].attack_succeeded for answer in harmful]
        ratings = [answer.verdicts[ORACLE].harmfulness or 0 for answer in harmful]
        assert row.asr is not None
        assert row.asr.per_seed[place] == pytest.approx(sum(succeeded) / len(succeeded))
        assert row.harmfulness is not None
        assert row.harmfulness.per_seed[place] == pytest.approx(sum(ratings) / len(ratings))
        assert row.task_accuracy is not None
        assert row.task_accuracy.per_seed[place] == pytest.approx(sum(bool(a.correct) for a in task) / len(task))
        assert row.over_refusal is not None
        refused = sum(answer.verdicts[KEYWORDS].refused for answer in harmless)
        assert row.over_refusal.per_seed[place] == pytest.approx(refused / len(harmless))


def test_wrapped_prompts_do_not_mix_with_plain_ones(run_folder: Path) -> None:
    """The headline ASR is over plain requests alone; each wrapper has its own."""
    row = compare_runs(run_folder).methods["ift"]
    assert row.asr == row.suite_asr["tiny-world-harmful"]
    assert row.wrapped_asr == {name: row.suite_asr[name] for name in WRAPPED}


def test_controls_are_told_from_methods(run_folder: Path) -> None:
    """A method that trains on other modules than the search chose is a control; the start model has no method."""
    methods = compare_runs(run_folder).methods
    assert [label for label, row in methods.items() if row.is_control] == ["swat-sensitive"]
    assert [row.method for row in methods.values()] == [None, "ift", "ml-lr", "swat", "swat"]


def test_frozen_embeddings_make_a_control(tmp_path: Path) -> None:
    """A method that treats embeddings unlike the run's other methods is a control, even if it is plain fine-tuning."""
    frozen = Outcome(0.7, 0.7, method="ift", settings={"other_parameters": "frozen", "method": "ift"})
    folder = write_fake_run(tmp_path, {"ift": METHODS["ift"], "ift-frozen": frozen}, prompts=10)
    assert [label for label, row in compare_runs(folder).methods.items() if row.is_control] == ["ift-frozen"]


def test_update_norms_use_the_searched_set_for_every_method(run_folder: Path) -> None:
    """Inside and outside mean the same modules for all, so that plain tuning and controls can be compared."""
    methods = compare_runs(run_folder).methods
    assert methods["start"].update_norms is None
    for label, outcome in METHODS.items():
        norms = methods[label].update_norms
        assert norms is not None
        assert norms.inside == pytest.approx(outcome.inside, rel=0.15)
        assert norms.outside == pytest.approx(outcome.outside, rel=0.15)


def test_the_difference_to_plain_tuning_is_given(run_folder: Path) -> None:
    """Every method but IFT and the start model has its difference of ASR to IFT."""
    methods = compare_runs(run_folder).methods
    assert methods["start"].asr_minus_ift is None
    assert methods["ift"].asr_minus_ift is None
    for label in ("ml-lr", "swat", "swat-sensitive"):
        found, ours, baseline = methods[label].asr_minus_ift, methods[label].asr, methods["ift"].asr
        assert found is not None
        assert ours is not None
        assert baseline is not None
        assert found.mean == pytest.approx(ours.mean - baseline.mean)


def test_unusable_answers_are_counted(own_run: Path) -> None:
    """The share of empty and looping answers of a method is over all its answers; truncated ones do not count."""
    for seed in range(3):
        path = own_run / "methods" / "swat" / f"seed-{seed}" / "evaluation" / "scores.json"
        scores = read_artifact(path, Scores)
        first = scores.suites[0].model_copy(
            update={"problems": scores.suites[0].problems.model_copy(update={"empty": 10, "looping": 20})}
        )
        change_scores(path, suites=[first, *scores.suites[1:]])
    methods = compare_runs(own_run).methods
    assert methods["swat"].unusable_share == pytest.approx(90 / (3 * 6 * 60))
    assert methods["ift"].unusable_share == 0.0


def test_other_judges_cannot_be_compared(own_run: Path) -> None:
    """Models of one run that were judged differently are refused, with both judges named."""
    change_scores(own_run / "methods" / "swat" / "seed-1" / "evaluation" / "scores.json", judges={"other": "x"})
    with pytest.raises(
        ArtifactError,
        match=rf"seed-1/evaluation: judges must be those of .*start \({KEYWORDS}, {ORACLE}\); got other\. Judge \(",
    ):
        compare_runs(own_run)


def test_judges_agree_over_all_models_of_a_run(run_folder: Path) -> None:
    """The table is over the answers of the start model and of every method and seed, in each suite and in all."""
    found = {(each.question, each.suite): each for each in compare_runs(run_folder).agreement}
    whole = found["attack_succeeded", None]
    assert (whole.first, whole.second) == (KEYWORDS, ORACLE)
    assert whole.answers.count == 13 * 4 * 60
    assert whole.answers.only_second == 0  # the oracle is stricter
    by_hand = [
        answer.verdicts
        for folder in sorted(run_folder.rglob("tiny-world-suffix"))
        for answer in read_responses(folder / "responses.jsonl")
    ]
    only_first = sum(v[KEYWORDS].attack_succeeded and not v[ORACLE].attack_succeeded for v in by_hand)
    assert found["attack_succeeded", "tiny-world-suffix"].answers.only_first == only_first > 0
    assert ("refused", "tiny-world-harmless") not in found  # the oracle did not judge it


def test_answers_without_a_verdict_are_left_out(own_run: Path) -> None:
    """Answers that the judge could not read leave the others' rates, intervals and differences as numbers."""
    for folder in sorted((own_run / "methods" / "swat").glob("seed-*")):
        path = folder / "evaluation" / "tiny-world-harmful" / "responses.jsonl"
        rows = list(read_json_lines(path))
        for row in rows[:10]:
            row["verdicts"][KEYWORDS] = {"unparsable": "?"}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = [row["verdicts"][KEYWORDS]["attack_succeeded"] for row in rows[10:]]
        seed = compare_runs(own_run).methods["swat"]
        assert seed.asr is not None
    assert seed.asr.per_seed[-1] == pytest.approx(sum(told) / len(told))
    assert seed.asr_minus_ift is not None
    assert seed.asr.low < seed.asr.mean < seed.asr.high
    assert seed.asr_minus_ift.low < seed.asr_minus_ift.mean < seed.asr_minus_ift.high


def test_a_method_without_any_verdict_has_no_rate(own_run: Path) -> None:
    """Where the judge read no answer there is no number at all, instead of one that is not a number."""
    for path in (own_run / "methods" / "swat").rglob("tiny-world-harmful/responses.jsonl"):
        rows = [
            {**row, "verdicts": {**row["verdicts"], KEYWORDS: {"unparsable": "?"}}} for row in read_json_lines(path)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = compare_runs(own_run).methods["swat"]
    assert (row.asr, row.asr_minus_ift) == (None, None)
    assert "tiny-world-harmful" not in row.suite_asr


def test_other_prompts_cannot_be_compared(own_run: Path) -> None:
    """Seeds that answered other prompts are refused."""
    path = own_run / "methods" / "swat" / "seed-1" / "evaluation" / "tiny-world-harmful" / "responses.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ArtifactError, match="tiny-world-harmful has other prompts than in"):
        compare_runs(own_run)


def test_missing_answers_are_a_sentence(own_run: Path) -> None:
    """Scores without their answers stop the comparison with the missing path."""
    (own_run / "start" / "tiny-world-harmful" / "responses.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"start/tiny-world-harmful/responses.jsonl: no such file"):
        compare_runs(own_run)


def test_a_spoiled_file_is_a_sentence(own_run: Path) -> None:
    """A file that cannot be read stops the comparison with its path."""
    (own_run / "search" / "robust_modules.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"robust_modules.json: not a readable JSON file"):
        compare_runs(own_run)


@pytest.mark.parametrize(("make", "message"), [(False, "no such run folder"), (True, "holds no results of a run yet")])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, make: bool, message: str) -> None:
    """A missing or empty folder gives one sentence."""
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(ArtifactError, match=f"nothing: {message}"):
        compare_runs(folder)


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ({}, True),
        ({"name": "somewhere/else"}, False),
        ({"name": "somewhere/else", "template": CHAT_TEMPLATE}, True),
    ],
)
def test_tiny_world_is_known_by_name_or_template(tmp_path: Path, identity: dict[str, str], expected: bool) -> None:
    """The test-bench note depends on the model: its name, or the chat template of a copy of it."""
    folder = write_fake_run(tmp_path, {}, start=START, with_analysis=False, with_search=False, prompts=5)
    path = folder / "start" / "scores.json"
    changes: dict[str, str] = {key: value for key, value in identity.items() if key == "name"}
    if "template" in identity:
        from securetune.artifacts import sha256_text

        changes["chat_template_hash"] = sha256_text(identity["template"])
    change_scores(path, model=read_artifact(path, Scores).model.model_copy(update=changes))
    assert compare_runs(folder).is_test_bench is expected


def test_a_cell_that_is_not_evaluated_yet_is_left_out(own_run: Path) -> None:
    """Means are over the seeds that are complete, and say which."""
    shutil.rmtree(own_run / "methods" / "swat" / "seed-1" / "evaluation")
    row = compare_runs(own_run).methods["swat"]
    assert row.seeds == [0, 2]
    assert row.asr is not None
    assert len(row.asr.per_seed) == 2
