"""Chains: defenses on weights after a training, checked before it and equal to the same steps done by hand."""

import pytest
from tiny_models import tiny_conversations

import securetune
from securetune.config import ModelSettings, TrainingSettings, check_run_config
from securetune.errors import InputError
from securetune.pipeline.chaining import check_chain, final_model
from securetune.pipeline.folder import RunFolder
from securetune.pipeline.jobs import list_jobs, training_label
from securetune.pipeline.merging import merge
from securetune.pipeline.patching import patch_weights

SHORT = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2}


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def model(tiny_model_dir):
    return ModelSettings(name=str(tiny_model_dir))


def train(model, out, **settings):
    resolved = TrainingSettings(**{**SHORT, "method": "ift", **settings})
    securetune.train(resolved, model, tiny_conversations(objects=4), out)
    return final_model(resolved, model, out)


def test_short_forms_mean_the_same():
    """A step is a name, a name with settings, or both written out."""
    short = TrainingSettings(after=["wise-ft", {"wise-ft": {"strength": 0.3}}, {"wise-ft": None}])
    long = [{"name": "wise-ft"}, {"name": "wise-ft", "options": {"strength": 0.3}}, {"name": "wise-ft", "options": {}}]
    assert short == TrainingSettings(after=long)
    assert TrainingSettings.model_validate(short.model_dump(mode="json")) == short


def test_a_chain_of_one_equals_the_defense_alone(model, tmp_path):
    """The chained step leaves the bytes that `securetune patch` leaves, and the trained model stays as it was."""
    final = train(model, tmp_path / "chain", after=[{"wise-ft": {"strength": 0.3}}])
    plain = train(model, tmp_path / "plain")
    patch_weights(plain, "wise-ft", tmp_path / "alone", {"start": model.name}, {"strength": 0.3})
    assert plain == tmp_path / "plain" / "model"
    assert weights_of(final) == weights_of(tmp_path / "alone")
    assert weights_of(final) != weights_of(plain)
    assert weights_of(tmp_path / "chain" / "model") == weights_of(plain)


def test_strength_0_changes_nothing(model, tmp_path):
    """A step of strength 0 leaves every bit of the trained weights."""
    final = train(model, tmp_path / "chain", after=[{"wise-ft": {"strength": 0.0}}])
    assert final != tmp_path / "chain" / "model"
    assert weights_of(final) == weights_of(tmp_path / "chain" / "model")


def test_the_order_of_the_steps_counts(model, tmp_path):
    """Each step works on what the step before it left: half the way back twice leaves a quarter of the update."""
    half = {"wise-ft": {"strength": 0.5}}
    twice = train(model, tmp_path / "twice", after=[half, half])
    plain = train(model, tmp_path / "plain")
    patch_weights(plain, "wise-ft", tmp_path / "once", {"start": model.name}, {"strength": 0.5})
    patch_weights(tmp_path / "once", "wise-ft", tmp_path / "again", {"start": model.name}, {"strength": 0.5})
    assert weights_of(twice) == weights_of(tmp_path / "again")


def test_an_adapter_is_merged_before_a_defense_on_whole_weights(model, tmp_path):
    """With LoRA the chain merges first, and ends where merging and patching by hand end."""
    lora = {"tune": "lora", "learning_rate": 1e-3}
    final = train(model, tmp_path / "chain", after=[{"wise-ft": {"strength": 0.3}}], **lora)
    merge(train(model, tmp_path / "plain", **lora), tmp_path / "merged")
    patch_weights(tmp_path / "merged", "wise-ft", tmp_path / "alone", {"start": model.name}, {"strength": 0.3})
    assert weights_of(final) == weights_of(tmp_path / "alone")


def test_a_finished_chain_is_not_done_again(model, tmp_path):
    """A second call changes no file; a step whose result is lost is done again, and another chain keeps its own."""
    settings = {"after": [{"wise-ft": {"strength": 0.3}}]}
    first = train(model, tmp_path / "out", **settings)
    before = weights_of(first), (first / "model.safetensors").stat().st_mtime_ns
    assert train(model, tmp_path / "out", **settings) == first
    assert (weights_of(first), (first / "model.safetensors").stat().st_mtime_ns) == before
    other = train(model, tmp_path / "out", after=[{"wise-ft": {"strength": 0.4}}])
    assert other != first
    assert weights_of(other) != before[0]
    for path in first.iterdir():
        path.unlink()
    assert weights_of(train(model, tmp_path / "out", **settings)) == before[0]


def test_every_mistake_is_told_before_the_training(model, tmp_path):
    """Unknown defenses and settings, missing and useless models: one sentence each, together, and no file."""
    after = [
        "wise-tf",
        "safe-lora",
        {"wise-ft": {"strenght": 0.1}},
        {"wise-ft": {"strength": 2.0}},
        {"wise-ft": {"base": model.name}},
        {"wise-ft": {"start": model.name}},
        {"safe-lora": {"base": "tiny-world"}},
        "swat",
    ]
    with pytest.raises(InputError) as caught:
        train(model, tmp_path / "out", after=after)
    problems = caught.value.problems
    expected = [
        'after.0: defense on weights "wise-tf" is unknown. Did you mean "wise-ft"?',
        "after.1: safe-lora needs base MODEL",
        "after.2: wise-ft has no setting strenght",
        "after.3: wise-ft: strength must be in [0, 1]",
        "after.4: wise-ft makes no use of base",
        "after.5: wise-ft: start is the model of the training; leave it out",
    ]
    for sentence in expected:
        assert any(problem.startswith(sentence) for problem in problems), (sentence, problems)
    assert len(problems) == len({problem[:8] for problem in problems}) == 7
    assert not (tmp_path / "out").exists()


def test_the_stage_refuses_a_chain_that_it_would_ignore(model, tmp_path):
    """The training stage by itself says that it applies no chain."""
    from securetune.training import train as train_alone

    settings = TrainingSettings(**{**SHORT, "method": "ift", "after": ["wise-ft"]})
    with pytest.raises(InputError, match=r"training\.after: this function trains alone"):
        train_alone(settings, model, tiny_conversations(objects=4), tmp_path / "out")


RECIPE = {
    "model": {"name": "tiny-world"},
    "data": "tiny-world",
    "training": {"max_steps": 4},
    "methods": {
        "swat": {},
        "swat-half": {"method": "swat", "after": ["wise-ft"]},
        "ift-half": {"method": "ift", "after": ["wise-ft"]},
        "ift": {},
    },
}


def test_methods_that_differ_in_their_chain_share_one_training(tmp_path):
    """The first label of the same training trains; the others wait for it, and for nothing else."""
    config = check_run_config(RECIPE)
    jobs = {job.name: job for job in list_jobs(config, RunFolder(tmp_path))}
    assert [training_label(config, label) for label in config.methods] == ["swat", "swat", "ift-half", "ift-half"]
    assert jobs["methods/swat/seed-0"].needs == ("search",)
    assert jobs["methods/swat-half/seed-0"].needs == ("methods/swat/seed-0",)
    assert jobs["methods/ift-half/seed-0"].needs == ()
    assert jobs["methods/ift/seed-0"].needs == ("methods/ift-half/seed-0",)


def test_a_chain_in_a_run_is_checked_with_its_label(tmp_path):
    """A run names the method whose chain cannot be done."""
    from securetune.pipeline.checks import check_run

    config = check_run_config({**RECIPE, "methods": {"ift": {"after": ["safe-lora"]}}})
    with pytest.raises(InputError, match=r"methods\.ift: after\.0: safe-lora needs base MODEL"):
        check_run(config, RunFolder(tmp_path / "run"))


def test_a_quantized_model_is_not_merged(model, monkeypatch):
    """An adapter on packed weights cannot be merged, so whole-weight defenses after it are refused."""
    monkeypatch.setattr("securetune.pipeline.chaining.is_quantized", lambda _: True)
    settings = TrainingSettings(**{**SHORT, "tune": "lora", "after": ["wise-ft"]})
    with pytest.raises(InputError, match=r"cannot be merged into a quantized start model"):
        check_chain(settings, model)


def test_prompts_that_a_method_protects_are_not_reported_on(tmp_path):
    """A method that gathers from a suite's own prompts is refused, and so is a file that is not there."""
    from securetune.evaluation import load_suite
    from securetune.pipeline.checks import check_run

    reported = load_suite("tiny-world-harmful").prompts[:3]
    (tmp_path / "seen.txt").write_text("\n".join(prompt.text for prompt in reported))
    methods = {
        "seen": {"method": "protected-subspace", "method_options": {"prompts": str(tmp_path / "seen.txt")}},
        "lost": {"method": "protected-subspace", "method_options": {"prompts": str(tmp_path / "lost.txt")}},
        "protected-subspace": {},
    }
    with pytest.raises(InputError) as caught:
        check_run(check_run_config({**RECIPE, "methods": methods}), RunFolder(tmp_path / "run"))
    assert any(
        problem.startswith("methods.seen: the method's prompts and the suite tiny-world-harmful must not overlap")
        for problem in caught.value.problems
    )
    assert any(problem.startswith("methods.lost: ") and "lost.txt" in problem for problem in caught.value.problems)
    assert not any(problem.startswith("methods.protected-subspace") for problem in caught.value.problems)


def test_settings_are_not_chosen_on_reported_prompts(tmp_path):
    """A selection whose prompts are reported under another name is refused, tasks included."""
    from securetune.pipeline.checks import check_run

    evaluation = {"suites": ["tiny-world-harmful"], "task": "tiny-world-query"}
    selection = {"suites": ["tiny-world-harmful@test"], "task": "tiny-world-query@test"}
    config = check_run_config({**RECIPE, "evaluation": evaluation, "selection": selection})
    with pytest.raises(InputError) as caught:
        check_run(config, RunFolder(tmp_path / "run"))
    told = [problem for problem in caught.value.problems if problem.startswith("selection: ")]
    assert len(told) == 2
    assert all("must not overlap" in problem for problem in told)
