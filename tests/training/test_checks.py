"""Bad input is found before any weights are loaded, all of it at once."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import SHORT, TrainShort, make_manifest
from tiny_models import make_tiny_network, make_tiny_tokenizer
from transformers import TrainingArguments, get_scheduler

from securetune.artifacts import RobustModules, write_json
from securetune.config import LoraSettings, ModelSettings, TrainingSettings
from securetune.errors import ArtifactError, ConfigError, InputError
from securetune.models import load
from securetune.training import check_training, checks, train

training_module = importlib.import_module("securetune.training.train")


def problems_of(
    model: Path, data: Any, out: Path, manifest: RobustModules | None = None, dtype: str = "auto", **settings: Any
) -> list[str]:
    resolved = TrainingSettings(**{**SHORT, **settings})
    with pytest.raises(InputError) as caught:
        check_training(resolved, ModelSettings(name=str(model), dtype=dtype), data, out, manifest)
    return caught.value.problems


def test_all_mistakes_together_before_the_weights(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistakes in the method, the schedule, the model, the data, the manifest and the folder are reported together."""
    monkeypatch.setattr(training_module, "load", lambda *arguments: pytest.fail("weights were loaded"))
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "x"}\n')
    out = tmp_path / "out"
    out.touch()
    settings = TrainingSettings(method="swatt", lr_scheduler_type="cosin", warmup_steps=2.5, seed=-1)
    with pytest.raises(InputError) as caught:
        train(settings, ModelSettings(name=str(tmp_path / "nowhere")), data, out)
    text = "\n".join(caught.value.problems)
    for expected in [
        'method "swatt" is unknown. Did you mean "swat"?',
        'lr_scheduler_type "cosin" is unknown. Did you mean "cosine"?',
        "warmup_steps must be a share below 1 or a whole number; got 2.5",
        "seed must be in [0, 2,147,483,648); got -1",
        "nowhere: no such model folder",
        "row 1: must have `messages`",
        "the output must be a folder; got a file",
    ]:
        assert expected in text
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize("method", ["ml-lr", "swat"])
def test_a_manifest_is_needed(method: str, tiny_model_dir: Path, rows: list, tmp_path: Path) -> None:
    """A method that needs Mods_Rob says so, and where the file comes from."""
    (problem,) = problems_of(tiny_model_dir, rows, tmp_path, method=method)
    assert problem.startswith(f'method "{method}" needs the robust modules: give the file that `securetune search`')


def test_a_manifest_file_is_read(tiny_model_dir: Path, rows: list, manifest: RobustModules, tmp_path: Path) -> None:
    """`modules` may be the path of a manifest; it counts like one that is given."""
    write_json(tmp_path / "robust_modules.json", manifest)
    settings = TrainingSettings(**SHORT, method="swat", modules=str(tmp_path / "robust_modules.json"))
    model = ModelSettings(name=str(tiny_model_dir))
    checked = check_training(settings, model, rows, tmp_path / "out")
    assert checked.manifest == manifest
    assert checked.inputs.modules_hash is not None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "no such file"), ("{", "not a readable JSON file"), ('{"format": "x"}', 'got format "x"')],
)
def test_a_broken_manifest(
    content: str | None, sentence: str, tiny_model_dir: Path, rows: list, tmp_path: Path
) -> None:
    """A manifest that is missing or no manifest is one clear line."""
    path = tmp_path / "modules.json"
    if content is not None:
        path.write_text(content)
    (problem,) = problems_of(tiny_model_dir, rows, tmp_path / "out", method="swat", modules=str(path))
    assert sentence in problem


def test_lora_without_any_robust_module(
    tiny_model_dir: Path, rows: list, manifest: RobustModules, tmp_path: Path
) -> None:
    """If LoRA's target types leave out all of Mods_Rob, nothing could learn in the warm-up, and that is an error."""
    only_q = manifest.model_copy(update={"modules": [m for m in manifest.modules if m.type == "Q"]})
    (problem,) = problems_of(
        tiny_model_dir, rows, tmp_path, only_q, method="swat", tune="lora", lora=LoraSettings(target_types=("K", "V"))
    )
    assert problem.startswith("lora.target_types (K, V) must include one of the manifest's module types (Q)")


@pytest.mark.parametrize(
    ("settings", "dtype", "sentence"),
    [
        (
            {"tune": "lora", "lora": LoraSettings(target_types=())},
            "auto",
            "must name at least one module type; got none",
        ),
        ({"tune": "full"}, "float16", '"float16" cannot be trained in full'),
    ],
)
def test_settings_that_cannot_work(
    settings: dict, dtype: str, sentence: str, tiny_model_dir: Path, rows: list, tmp_path: Path
) -> None:
    """Settings that would train nothing, or lose every update, are refused."""
    (problem,) = problems_of(tiny_model_dir, rows, tmp_path, dtype=dtype, method="ift", **settings)
    assert sentence in problem


@pytest.mark.parametrize(
    ("settings", "phases"),
    [
        ({"method": "ift", "max_steps": 1}, ['"main" has 1 step:']),
        ({"method": "swat", "max_steps": 2}, ['"warmup" has 1 step:']),
        ({"method": "swat", "max_steps": 1}, ['"warmup" has 1 step:', '"main" has 1 step:']),
        ({"method": "ml-lr", "max_steps": 3, "warmup_steps": 3}, ['"main" has 3 steps:']),
        ({"method": "ift", "max_steps": 1, "warmup_steps": 0}, []),
        ({"method": "ift", "max_steps": 1, "lr_scheduler_type": "constant"}, []),
        ({"method": "swat", "max_steps": 4}, []),
    ],
)
def test_a_warm_up_as_long_as_a_phase(settings: dict, phases: list[str]) -> None:
    """A phase that would never come to its learning rate is refused: one of a single step would learn nothing."""
    problems = checks.setting_problems(TrainingSettings(**settings), ModelSettings())
    assert len(problems) == len(phases)
    for problem, phase in zip(problems, phases, strict=True):
        assert problem.startswith("warmup_steps must be shorter than every phase; got ")
        assert phase in problem


def test_a_warm_up_as_long_as_the_epochs(tiny_model_dir: Path, rows: list, tmp_path: Path) -> None:
    """If the steps come from epochs, the same is found before the training begins, and nothing is written."""
    settings = TrainingSettings(method="ift", num_train_epochs=1, per_device_train_batch_size=len(rows))
    with pytest.raises(ConfigError, match=r'got 0\.03, and the phase "main" has 1 step: .* Set warmup_steps to 0'):
        train(settings, ModelSettings(name=str(tiny_model_dir)), rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("schedule", checks.SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 0.03, 0.5, 0.99, 1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_what_is_not_refused_reaches_its_learning_rate(schedule: str, warmup_steps: float, steps: int) -> None:
    """With transformers' own schedules, a phase that passes the check has its full learning rate at some step."""
    settings = TrainingSettings(
        method="ift", max_steps=steps, lr_scheduler_type=schedule, warmup_steps=warmup_steps, learning_rate=1.0
    )
    arguments = TrainingArguments(max_steps=steps, warmup_steps=warmup_steps, lr_scheduler_type=schedule)
    expected = arguments.get_warmup_steps(steps)
    assert checks.learning_rate_warmup_steps(settings, steps) == expected
    if checks.setting_problems(settings, ModelSettings()):
        assert expected >= steps
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=expected, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == 1.0


def test_an_adapter_on_an_adapter(rows: list, train_short: TrainShort, tmp_path: Path) -> None:
    """An adapter as the start model is tuned in full; another adapter on top of it is refused."""
    train_short(tmp_path / "first", method="ift", tune="lora", max_steps=1, warmup_steps=0)
    start = tmp_path / "first/model"
    (problem,) = problems_of(start, rows, tmp_path / "out", method="ift", tune="lora")
    assert "is an adapter itself; merge it" in problem
    settings = TrainingSettings(**{**SHORT, "max_steps": 1, "warmup_steps": 0}, method="ift")
    result = train(settings, ModelSettings(name=str(start)), rows, tmp_path / "out")
    assert result.model.architecture == "LlamaForCausalLM"


def test_another_gpu_is_not_ignored(tiny_model_dir: Path, rows: list, tmp_path: Path) -> None:
    """A GPU other than the first is refused with what to do instead; the trainer would have taken the first."""
    settings, model = TrainingSettings(**SHORT, method="ift"), ModelSettings(name=str(tiny_model_dir), device="cuda:1")
    with pytest.raises(InputError, match="training takes the first GPU; set CUDA_VISIBLE_DEVICES=1"):
        check_training(settings, model, rows, tmp_path / "out")


def test_a_distributed_launcher_is_refused(
    tiny_model_dir: Path, rows: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes would write over each other's files, so they are refused instead of ignored."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = problems_of(tiny_model_dir, rows, tmp_path, method="ift")
    assert problem.startswith("training runs in one process")


@pytest.fixture
def other_model(tmp_path: Path) -> ModelSettings:
    """A model of the same architecture with other weights."""
    tokenizer = make_tiny_tokenizer()
    make_tiny_network(len(tokenizer), seed=1).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return ModelSettings(name=str(tmp_path / "other"))


def test_a_manifest_of_another_model_is_found_before_the_weights(
    other_model: ModelSettings, rows: list, manifest: RobustModules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest made for a model with other weights is refused with all other mistakes, and no weights are loaded."""
    monkeypatch.setattr(training_module, "load", lambda *arguments: pytest.fail("weights were loaded"))
    write_json(tmp_path / "modules.json", manifest)
    settings = TrainingSettings(**SHORT, method="swat", modules=str(tmp_path / "modules.json"), seed=-1)
    with pytest.raises(InputError) as caught:
        train(settings, other_model, rows, tmp_path / "out")
    assert caught.value.problems == [
        "seed must be in [0, 2,147,483,648); got -1",
        f'{tmp_path}/modules.json: was made for "{manifest.model.name}", whose weights differ from those of '
        f'"{other_model.name}". Analyze this model, or give the one that was analyzed.',
    ]
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_model_is_found_in_the_weights(
    other_model: ModelSettings, rows: list, manifest: RobustModules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model's files do not tell, as those of a hub model, is found when it is loaded, before training."""
    monkeypatch.setattr(checks, "check_same_model_in_files", lambda *arguments: None)
    settings = TrainingSettings(**SHORT, method="swat")
    with pytest.raises(ArtifactError, match=r"the manifest: was made for .*, whose weights differ"):
        train(settings, other_model, rows, tmp_path / "out", manifest)
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_chat_template(
    tiny_model_dir: Path, rows: list, manifest: RobustModules, tmp_path: Path
) -> None:
    """A manifest made with another chat template is refused: the features it rests on were seen through it."""
    chat = load(str(tiny_model_dir))
    chat.model.save_pretrained(tmp_path / "other")
    chat.tokenizer.chat_template = chat.tokenizer.chat_template.replace("' <user> '", "' <user>  '")
    chat.tokenizer.save_pretrained(tmp_path / "other")
    (problem,) = problems_of(tmp_path / "other", rows, tmp_path / "out", manifest, method="swat")
    assert "the manifest: was made with another chat template" in problem


def test_a_manifest_of_everything(train_short: TrainShort, tiny_model_dir: Path, rows: list, tmp_path: Path) -> None:
    """If Mods_Rob is everything that may train, there is nothing to protect, and that is an error."""
    chat = load(str(tiny_model_dir))
    names = [name.removesuffix(".weight") for name, _ in chat.model.named_parameters()]
    settings = TrainingSettings(**SHORT, method="ml-lr", other_parameters="frozen")
    with pytest.raises(ConfigError, match="ml-lr: the manifest covers everything that may train"):
        train(settings, chat.settings, rows, tmp_path / "out", make_manifest(chat, names))


def test_a_start_model_that_was_replaced(rows: list, tmp_path: Path) -> None:
    """A training does not go on if the weights in the start model's folder are others than when it began."""
    tokenizer = make_tiny_tokenizer()
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    settings, model = TrainingSettings(**SHORT, method="ift"), ModelSettings(name=str(folder))
    for seed in (0, 1):
        make_tiny_network(len(tokenizer), seed=seed).save_pretrained(folder)
        if seed == 0:
            train(settings, model, rows, tmp_path / "out")
            (tmp_path / "out/training.json").unlink()
    with pytest.raises(ConfigError, match="it differs in the weights of the start model"):
        train(settings, model, rows, tmp_path / "out")


def test_inputs_are_written_for_people(train_short: TrainShort, tmp_path: Path) -> None:
    """What a folder was begun with is kept in it, in full."""
    train_short(tmp_path / "out", method="ift")
    content = json.loads((tmp_path / "out/training_inputs.json").read_text())
    assert content["settings"]["method"] == "ift"
    assert content["settings"]["learning_rate"] == 1e-2
    assert len(content["data_hash"]) == 64
