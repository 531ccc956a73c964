"""Chains on the data: `training.before` in `train`, in a plan and in a run, and what is written down of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_conversations

import securetune
from securetune.artifacts import DataPreparation, TrainingResult, read_artifact, read_json_lines
from securetune.config import ModelSettings, TrainConfig, TrainingSettings, check_run_config
from securetune.data.conversations import conversations_hash
from securetune.errors import ConfigError, InputError
from securetune.pipeline.checks import check_run
from securetune.pipeline.folder import RunFolder, hash_inputs
from securetune.pipeline.jobs import list_jobs, prepare, train_and_evaluate, training_label
from securetune.pipeline.planning import plan
from securetune.pipeline.preparing import prepare_data
from securetune.training import train as train_alone

ROWS = tiny_conversations(objects=4)
SHORT = {"method": "ift", "num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
PAIRS = [
    {"prompt": f"how do I steal a {thing} ?", "accepted": f"sure take the {thing}", "refused": "sorry can not"}
    for thing in ("car", "boat", "house", "phone", "piano", "statue", "letter", "wine")
]


@pytest.fixture
def model(tiny_model_dir: Path) -> ModelSettings:
    return ModelSettings(name=str(tiny_model_dir))


@pytest.fixture
def shield(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in PAIRS))
    return {"datashield": {"drop_count": 4, "pairs": str(tmp_path / "pairs.jsonl")}}


def train(model: ModelSettings, out: Path, progress: Any = None, rows: Any = ROWS, **settings: Any) -> TrainingResult:
    return securetune.train(TrainingSettings(**{**SHORT, **settings}), model, rows, out, None, progress)


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_a_chain_of_one_equals_the_defense_alone(model: ModelSettings, shield: dict[str, Any], tmp_path: Path) -> None:
    """The weights are those of a plain training on the rows that the defense leaves; what it did is written down."""
    result = train(model, tmp_path / "chain", before=[shield])
    prepared = prepare_data(ROWS, [shield], model)
    assert len(prepared.conversations) == 12
    alone = train_alone(TrainingSettings(**SHORT), model, list(prepared.conversations), tmp_path / "alone")
    assert weights(tmp_path / "chain") == weights(tmp_path / "alone")
    assert result.data.hash == alone.data.hash == prepared.record.hash
    (step,) = result.data.preparation.steps
    assert (step.rows_before, step.dropped, step.rows_after) == (16, 4, 12)
    assert result.data.preparation.given_hash == conversations_hash(ROWS)
    scores = list(read_json_lines(tmp_path / "chain" / "prepared_data" / "data_scores.jsonl"))
    assert [row["index"] for row in scores] == list(range(16))
    assert sum(row["kept"] for row in scores) == 12
    card = (tmp_path / "chain" / "model" / "README.md").read_text()
    assert "`datashield`: 4 rows dropped" in card
    assert step.hash in card
    assert str(tmp_path) not in card


def test_with_nothing_to_do_it_is_plain_training(model: ModelSettings, tmp_path: Path) -> None:
    """Count 0 and nothing to drop leave the weights of plain training, bit for bit."""
    train(model, tmp_path / "plain")
    train(model, tmp_path / "none", before=[{"safety-mix": {"count": 0}}, {"random-drop": {"drop_count": 0}}])
    assert weights(tmp_path / "none") == weights(tmp_path / "plain")


def test_the_order_counts(model: ModelSettings) -> None:
    """Each defense works on what the one before it left."""
    mix, drop = {"safety-mix": {"count": 8}}, {"random-drop": {"drop_fraction": 0.5}}
    assert len(prepare_data(ROWS, [mix, drop], model).conversations) == 12
    assert len(prepare_data(ROWS, [drop, mix], model).conversations) == 16


def test_a_stopped_training_goes_on(
    model: ModelSettings, shield: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while scoring, and again while training, it ends with the same weights; no row is scored twice."""

    class StopError(Exception):
        pass

    def stop_at(what: str, when: int) -> Any:
        def progress(name: str, done: int, total: int) -> None:
            if name == what and done == when:
                raise StopError

        return progress

    settings = {"before": [shield], "save_steps": 1}
    train(model, tmp_path / "whole", **settings)
    with pytest.raises(StopError):
        train(model, tmp_path / "parts", stop_at("rows scored", 16), **settings)
    assert not (tmp_path / "parts" / "prepared_data").exists()
    with pytest.raises(StopError):
        train(model, tmp_path / "parts", stop_at("main", 2), **settings)
    monkeypatch.setattr("securetune.pipeline.preparing.load", None)  # a second look at the model would fail
    train(model, tmp_path / "parts", **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_another_defense_is_not_taken_over(model: ModelSettings, tmp_path: Path) -> None:
    """A folder refuses another defense, other data and other samples, before anything is prepared or trained."""
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"prompt": "steal a car", "completion": "sorry"}) + "\n")
    mix = {"safety-mix": {"count": 1, "samples": str(samples)}}
    train(model, tmp_path / "out", before=[mix])
    with pytest.raises(InputError, match=r"another training run \(it differs in training\.before\)"):
        train(model, tmp_path / "out", before=[{"random-drop": {"drop_count": 1}}])
    with pytest.raises(InputError, match=r"another training run \(it differs in data\)"):
        train(model, tmp_path / "out", before=[mix], rows=ROWS[:12])
    samples.write_text(json.dumps({"prompt": "burn a car", "completion": "sorry"}) + "\n")
    with pytest.raises(ConfigError, match=r"prepared_data: holds data that were prepared from other data"):
        train(model, tmp_path / "out", before=[mix])


def test_spoiled_data_are_noticed(model: ModelSettings, tmp_path: Path) -> None:
    """Conversations that are not those of the record are not trained on."""
    drop = [{"random-drop": {"drop_count": 1}}]
    prepare_data(ROWS, drop, model, tmp_path / "data")
    assert read_artifact(tmp_path / "data" / "data.json", DataPreparation).conversations == 15
    lines = (tmp_path / "data" / "conversations.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data" / "conversations.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="holds other conversations than"):
        prepare_data(ROWS, drop, model, tmp_path / "data")


def test_every_mistake_is_told_together(model: ModelSettings, tmp_path: Path) -> None:
    """Unknown names and options, other stages, too many rows dropped or wanted: one sentence each, and no file."""
    steps = [
        "safty-mix",
        "swat",
        "ptst",
        {"safety-mix": {"cuont": 1}},
        {"random-drop": {"drop_fraction": 1.0}},
        {"safety-mix": {"count": 1000}},
        "malicious-mix",
        {"datashield": {"layer": 9}},
    ]
    with pytest.raises(InputError) as caught:
        train(model, tmp_path / "out", before=steps, generation=["wise-ft"], after=["safety-mix"], method="swta")
    expected = [
        'after.0: "safety-mix" is no defense on weights: it acts on the training data',
        'generation.0: "wise-ft" is no defense at generation: it acts on finished weights',
        'before.0: defense on the data "safty-mix" is unknown. Did you mean "safety-mix"?',
        'before.1: "swat" is no defense on the data: it acts while training. Name it in training.method',
        'before.2: "ptst" is no defense on the data: it acts at generation. Name it in training.generation',
        'before.3: safety-mix.cuont: unknown key. Did you mean "count"?',
        "before.4: random-drop: drops 16 of 16 rows",
        "before.5: safety-mix: adds 1,000 samples to 16 rows, but the built-in ones hold 120",
        "before.6: malicious-mix: samples: required",
        "before.7: datashield.layer must be in [1, 2]",
        'method "swta" is unknown. Did you mean "swat"?',
    ]
    problems = caught.value.problems
    for sentence in expected:
        assert any(problem.startswith(sentence) for problem in problems), (sentence, problems)
    assert len(problems) == len(expected)
    assert not (tmp_path / "out").exists()


def test_the_stage_refuses_data_that_nobody_prepared(model: ModelSettings, tmp_path: Path) -> None:
    """The training stage by itself prepares nothing, and says so."""
    settings = TrainingSettings(**SHORT, before=["safety-mix"])
    with pytest.raises(InputError, match=r"training\.before: this function trains alone"):
        train_alone(settings, model, ROWS, tmp_path / "out")


def test_data_chosen_by_another_model_are_not_trained_on(
    model: ModelSettings, shield: dict[str, Any], tmp_path: Path
) -> None:
    """Rows that were scored with weights which are not there any more are refused."""
    prepared = prepare_data(ROWS, [shield], model)
    other = prepared.record.model.model_copy(update={"weights_fingerprint": "other"})
    changed = prepared._replace(record=prepared.record.model_copy(update={"model": other}))
    with pytest.raises(ConfigError, match="prepared with other weights"):
        train_alone(TrainingSettings(**SHORT, before=[shield]), model, changed, tmp_path / "out")


def test_a_plan_counts_what_is_left(model: ModelSettings, shield: dict[str, Any], tmp_path: Path) -> None:
    """The plan's steps and rows are those of the training, and it says that the rows are not known yet."""
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    before = [{"safety-mix": {"count": 5}}, shield]
    data = str(tmp_path / "data.jsonl")
    planned = plan(TrainConfig(model=model, data=data, training={**SHORT, "before": before}))
    done = train(model, tmp_path / "out", rows=data, before=before)
    assert planned.trainings[0].phases[0].steps == done.phases[0].steps == 5
    assert planned.data.conversations == done.data.conversations == 17
    assert [(step.rows_before, step.rows_after) for step in planned.trainings[0].before] == [(16, 21), (21, 17)]
    assert any("Which rows datashield drops is known once" in note for note in planned.notes)


RECIPE = {
    "model": {"name": "tiny-world"},
    "data": "tiny-world",
    "training": {"max_steps": 2, "per_device_train_batch_size": 2},
    "methods": {
        "ift": {},
        "ptst": {"method": "ift", "generation": ["ptst"]},
        "mix": {"method": "ift", "before": [{"safety-mix": {"count": 5}}]},
        "mix-half": {"method": "ift", "before": [{"safety-mix": {"count": 5}}], "after": ["wise-ft"]},
        "mix-more": {"method": "ift", "before": [{"safety-mix": {"count": 6}}]},
        "swat-mix": {"method": "swat", "before": [{"safety-mix": {"count": 5}}]},
    },
    "evaluation": {
        "suites": ["tiny-world-harmful"],
        "judges": ["tiny-world-oracle"],
        "max_prompts": 2,
        "max_new_tokens": 4,
    },
    "seeds": [0, 1],
}


def test_data_are_prepared_once_and_trainings_are_shared_where_data_are_the_same(tmp_path: Path) -> None:
    """One job for each chain on the data, for which all its cells wait; another chain is another training."""
    config = check_run_config(RECIPE)
    jobs = {job.name: job for job in list_jobs(config, RunFolder(tmp_path))}
    data = [name for name in jobs if name.startswith("data/")]
    assert len(data) == 2
    assert [training_label(config, label) for label in config.methods] == [
        "ift", "ift", "mix", "mix", "mix-more", "swat-mix",
    ]  # fmt: skip
    for seed in (0, 1):
        assert jobs[f"methods/ift/seed-{seed}"].needs == ()
        assert jobs[f"methods/ptst/seed-{seed}"].needs == (f"methods/ift/seed-{seed}",)
        assert jobs[f"methods/mix/seed-{seed}"].needs == (data[0],)
        assert jobs[f"methods/mix-half/seed-{seed}"].needs == (f"methods/mix/seed-{seed}",)
        assert jobs[f"methods/mix-more/seed-{seed}"].needs == (data[1],)
        assert jobs[f"methods/swat-mix/seed-{seed}"].needs == ("search", data[0])


def test_a_cell_trains_on_the_prepared_data_and_is_shown_its_prompt(tmp_path: Path) -> None:
    """The data's job leaves what the cells train on; one that differs at generation alone takes the training over."""
    from securetune.artifacts import Scores

    config, folder = check_run_config(RECIPE), RunFolder(tmp_path)
    prepare(config, folder, "mix", lambda *_: None)
    for label in ("mix", "ift", "ptst"):
        train_and_evaluate(config, folder, label, 0, lambda *_: None)
    trained = {
        label: read_artifact(folder.cell(label, 0) / "training.json", TrainingResult) for label in ("mix", "ift")
    }
    assert trained["mix"].data.conversations == trained["ift"].data.conversations + 5 == 4005
    assert not (folder.cell("ptst", 0) / "model").exists()
    shown = {label: read_artifact(folder.cell_scores(label, 0), Scores) for label in ("ift", "ptst")}
    assert shown["ift"].generation == []
    assert [step.name for step in shown["ptst"].generation] == ["ptst"]
    assert shown["ift"].model.weights_fingerprint == shown["ptst"].model.weights_fingerprint
    assert shown["ptst"].settings["generation"][0]["options"]["prompt"]


def test_samples_are_not_reported_on(tmp_path: Path) -> None:
    """Samples that share a prompt with a suite of the run are an error, and so is one told twice what it sees."""
    from securetune.evaluation import load_suite

    for name in ("test", "validation"):
        prompts = load_suite(f"tiny-world-harmful@{name}").prompts[:3]
        rows = [{"prompt": prompt.text, "completion": "I cannot help with that ."} for prompt in prompts]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    methods = {
        name: {"method": "ift", "before": [{"safety-mix": {"count": 1, "samples": str(tmp_path / f"{name}.jsonl")}}]}
        for name in ("test", "validation")
    }
    methods["fine"] = {"method": "ift", "before": ["safety-mix", "malicious-mix", "datashield"]}
    methods["twice"] = {"method": "ift", "generation": ["ptst"]}
    selection = {"suites": ["tiny-world-harmful@validation"], "task": "tiny-world-query@validation"}
    evaluation = {"suites": ["tiny-world-harmful"], "generation": []}
    recipe = {**RECIPE, "methods": methods, "selection": selection, "evaluation": evaluation}
    with pytest.raises(InputError) as caught:
        check_run(check_run_config(recipe), RunFolder(tmp_path / "run"))
    told = "\n".join(caught.value.problems)
    assert "methods.test: the prompts of safety-mix and the suite tiny-world-harmful must not overlap; 3 of" in told
    assert "methods.validation: the prompts of safety-mix and the suite tiny-world-harmful" in told
    assert "methods.twice: generation and evaluation.generation both say what the tuned model is shown" in told
    assert len(caught.value.problems) == 3


def test_a_changed_file_of_samples_is_another_run(tmp_path: Path) -> None:
    """The hashes of a run's inputs hold those of the files that its chains read."""
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    methods = {"ift": {"before": [{"safety-mix": {"count": 1, "samples": str(samples)}}]}}
    config = check_run_config({**RECIPE, "methods": methods})
    before = hash_inputs(config)
    samples.write_text(json.dumps({"prompt": "a", "completion": "c"}) + "\n")
    changed = hash_inputs(config)
    assert [key for key in before if before[key] != changed[key]] == [f"chain.{samples}"]


def test_the_trainer_says_where_data_are_prepared() -> None:
    """A defense on the data is no method of `SecureSFTTrainer`, whose data TRL tokenizes; it says what to do."""
    with pytest.raises(ConfigError, match=r"acts on the training data\. .* or call securetune\.prepare_data"):
        securetune.SecureSFTConfig("out", method="safety-mix", use_cpu=True, bf16=False)
