"""An analysis that was interrupted goes on where it stopped, and ends with the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_prompts

from securetune.analysis import Execution, analyze_robustness, remove_partial_results, sweep_modules
from securetune.analysis.partial_results import PartialResults, key_of
from securetune.artifacts import RobustnessReport
from securetune.config import AnalysisSettings
from securetune.data.prompts import ProbeSet
from securetune.features import GaussianPerturbation, SafetyClassifier, UpdatePerturbation
from securetune.models import ChatModel, load, map_modules

OPENINGS = {"refusal_openings": ("sorry",), "compliance_openings": ("yes", "sure")}
SETTINGS = AnalysisSettings(noise_seeds=2, batch_size=16, **OPENINGS)
PROMPTS = tiny_prompts("harmful", 0, 7)
KEY = "ab" * 32


class StoppedError(Exception):
    pass


class StopAt:
    """A progress callback that stops the analysis after so many calls of a part, and counts all."""

    def __init__(self, part: str = "", call: int = 0):
        self.part, self.call, self.calls = part, call, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what.startswith(self.part):
            self.calls += 1
            if self.calls == self.call:
                raise StoppedError


class Counted(GaussianPerturbation):
    """Noise that counts how often it is applied."""

    times = 0

    @contextmanager
    def applied(self, *arguments) -> Iterator[None]:
        Counted.times += 1
        with super().applied(*arguments):
            yield


@pytest.fixture(autouse=True)
def _nothing_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Counted, "times", 0)


def classifier(seed: int = 5) -> SafetyClassifier:
    generator = torch.Generator().manual_seed(seed)
    return SafetyClassifier(torch.randn(32, generator=generator, dtype=torch.float64), 0.1)


def sweep(chat: ChatModel, execution: Execution | None, seeds=(0, 1), readout: SafetyClassifier | None = None):
    layers = [classifier(8), classifier(9)]
    return sweep_modules(
        chat,
        PROMPTS,
        [readout or classifier()],
        [0.5],
        seeds,
        perturbation=Counted(),
        layer_classifiers=layers,
        execution=execution,
    )


def interrupted_sweep(chat: ChatModel, folder: Path, after: int = 5) -> None:
    with pytest.raises(StoppedError):
        sweep(chat, Execution(StopAt(call=after + 1), folder))


def assert_equal_sweeps(found, expected) -> None:
    name = classifier().name
    assert torch.equal(found.readouts[name].perturbed, expected.readouts[name].perturbed)
    assert all(
        torch.equal(a.nan_to_num(-2), b.nan_to_num(-2)) for a, b in zip(found.drift, expected.drift, strict=True)
    )


def test_an_analysis_interrupted_in_every_part_ends_with_the_same_report(
    tiny_model_dir: Path, tiny_probes: ProbeSet, tmp_path: Path
):
    """Accuracies, margins, drift and controls are bit for bit those of an undisturbed one, with nothing done twice."""

    def analyze(progress: StopAt, folder: Path | None) -> RobustnessReport:
        report = analyze_robustness(
            load(str(tiny_model_dir)), tiny_probes, SETTINGS, progress, Counted(), partial_results=folder
        )
        return report.model_copy(update={"duration_seconds": {}})

    expected, whole = analyze(StopAt(), None), Counted.times
    Counted.times = 0
    for part in ("calibrating", "perturbing", "checking", "control"):
        with pytest.raises(StoppedError):
            analyze(StopAt(part, 6), tmp_path / "partial")
    assert analyze(StopAt(), tmp_path / "partial") == expected
    assert Counted.times == whole
    remove_partial_results(tmp_path / "partial")
    assert list(tmp_path.iterdir()) == []


def test_finished_modules_are_not_perturbed_again(tiny_chat_model: ChatModel, tmp_path: Path):
    """Five of fourteen modules were finished, so nine are left: two draws each; then none, with the drift alike."""
    expected = sweep(tiny_chat_model, None)
    interrupted_sweep(tiny_chat_model, tmp_path)
    for left in (9, 0):
        Counted.times = 0
        assert_equal_sweeps(sweep(tiny_chat_model, Execution(partial_results=tmp_path)), expected)
        assert Counted.times == 2 * left


def test_progress_begins_where_the_pass_stopped(tiny_chat_model: ChatModel, tmp_path: Path):
    """What is finished counts as done at once, and the last call says that all is."""
    interrupted_sweep(tiny_chat_model, tmp_path)
    calls = []
    sweep(tiny_chat_model, Execution(lambda what, done, total: calls.append((done, total)), tmp_path))
    assert calls[0] == (10, 21)
    assert calls[-1] == (21, 21)


@pytest.mark.parametrize("change", ["weights", "seeds", "readout", "dtype"])
def test_what_was_made_with_anything_else_is_not_used(tiny_chat_model: ChatModel, tmp_path: Path, change: str):
    """Another model, seeds, classifier or precision begins anew and gives its own numbers."""
    interrupted_sweep(tiny_chat_model, tmp_path)
    options = {}
    if change == "weights":
        with torch.no_grad():  # beyond the values that the model's fingerprint samples
            tiny_chat_model.model.model.layers[0].mlp.up_proj.weight[-1] += 1e-3
    elif change == "dtype":
        tiny_chat_model.model.double()
    else:
        options = {"seeds": {"seeds": (0, 2)}, "readout": {"readout": classifier(6)}}[change]
    expected = sweep(tiny_chat_model, None, **options)
    Counted.times = 0
    assert_equal_sweeps(sweep(tiny_chat_model, Execution(partial_results=tmp_path), **options), expected)
    assert Counted.times == 2 * 14


@pytest.mark.parametrize("damage", ["cut off", "empty", "foreign", "another key inside"])
def test_a_damaged_or_foreign_file_is_replaced(tiny_chat_model: ChatModel, tmp_path: Path, damage: str):
    """It counts as absent, and the sweep gives the numbers of an undisturbed one."""
    expected = sweep(tiny_chat_model, None)
    interrupted_sweep(tiny_chat_model, tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "another key inside":
        with PartialResults(tmp_path, KEY) as other:
            other.add(map_modules(tiny_chat_model.model)[0].name, {"values": torch.zeros(1, 2, 7)})
        (tmp_path / f"{KEY[:32]}-0.safetensors").replace(path)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut off": content[:-100], "empty": b"", "foreign": b"{}" * 200}[damage])
    Counted.times = 0
    assert_equal_sweeps(sweep(tiny_chat_model, Execution(partial_results=tmp_path)), expected)
    assert Counted.times == 2 * 14
    with PartialResults(tmp_path, path.name.removesuffix("-0.safetensors")) as wrong_key:
        assert map_modules(tiny_chat_model.model)[0].name not in wrong_key


def test_values_come_back_as_they_were(tmp_path: Path):
    """Numbers, NaN and scalars, from the files of all writers; another key sees none of them."""
    values = {"cosine": torch.tensor([torch.nan, 0.1], dtype=torch.float64), "accuracy": torch.tensor(0.5)}
    for writer in (0, 3):
        with PartialResults(tmp_path, KEY, writer) as results:
            results.add(f"layers.{writer}", values)
    read = PartialResults(tmp_path, KEY, 1)
    for module in ("layers.0", "layers.3"):
        assert torch.equal(read[module]["cosine"].nan_to_num(7), values["cosine"].nan_to_num(7))
        assert torch.equal(read[module]["accuracy"], values["accuracy"])
    assert "layers.0" not in PartialResults(tmp_path, "cd" * 32)


def test_nothing_is_kept_without_a_key_or_a_folder(tmp_path: Path):
    """A pass whose inputs cannot be told apart is made anew each time."""
    for folder, key in ((tmp_path, None), (None, KEY)):
        with PartialResults(folder, key) as results:
            results.add("layers.0", {"accuracy": torch.tensor(0.5)})
            assert "layers.0" in results
    assert list(tmp_path.iterdir()) == []


def test_a_key_tells_contents_apart():
    """Tensors by value, shape and type, objects by class and attributes; what cannot be seen gives no key."""
    run = {"a": torch.ones(3, 2)}
    contents = [
        GaussianPerturbation(),
        Counted(),
        UpdatePerturbation([run]),
        UpdatePerturbation([run, run]),
        UpdatePerturbation([{"a": torch.ones(3, 2).double()}]),
        UpdatePerturbation([{"a": torch.ones(2, 3)}]),
        UpdatePerturbation([{"b": torch.ones(3, 2)}]),
        [1.0, [2.0]],
        [[1.0], 2.0],
        [1, [2]],
        None,
    ]
    keys = [key_of(content=content) for content in contents]
    assert None not in keys
    assert len(set(keys)) == len(contents)
    assert keys[2] == key_of(content=UpdatePerturbation([{"a": torch.ones(3, 2)}]))
    assert key_of(content=lambda: 1) is None
    assert key_of(content=[object()]) is None
