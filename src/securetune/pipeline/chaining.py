"""Training, and what a configuration chains around it.

`training.before` acts on the data (see `preparing`). Each step of `training.after` reads a model folder and writes the
next one, as `securetune patch` does; the trained model stays beside them. `training.generation` changes no weight: it
is written down in the folder of the final model, where `securetune evaluate` finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from securetune.artifacts import (
    GENERATION_FILE,
    GenerationDefenses,
    RobustModules,
    TrainingResult,
    sha256_json,
    write_json,
    write_text,
)
from securetune.config import ChainStep, ModelSettings, TrainingSettings
from securetune.data.conversations import Conversation, ReadConversations, read_training_data
from securetune.data.prepared import PreparedData
from securetune.defenses import (
    GenerationDefense,
    WeightDefense,
    chained_generation,
    check_templates,
    find_weight_defense,
    shown_steps,
)
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.models import check_model, is_quantized
from securetune.models.checks import load_tokenizer
from securetune.models.registry import find_model
from securetune.pipeline.merging import merge
from securetune.pipeline.patching import patch_weights
from securetune.pipeline.patching.patch import PATCH_FILE
from securetune.pipeline.patching.sources import ROLES, check_same_architecture, resolve_roles
from securetune.pipeline.preparing import apply_before, check_before
from securetune.progress import ProgressCallback
from securetune.training import check_training
from securetune.training import train as train_alone
from securetune.training.model_card import GENERATION_HEADING, generation_section

_MERGED = "merged"
_PREPARED = "prepared_data"


class CheckedStep(NamedTuple):
    """A step that fits the training.

    Attributes:
        name: Registered name of the defense.
        options: Its settings.
        sources: Role → the other model.
        merges_first: Whether it needs an adapter to be merged before it.
    """

    name: str
    options: dict[str, object]
    sources: dict[str, str]
    merges_first: bool


def train(
    settings: TrainingSettings,
    model: ModelSettings,
    data: str | Path | Sequence[Conversation],
    out: Path,
    manifest: RobustModules | None = None,
    progress: ProgressCallback | None = None,
) -> TrainingResult:
    """Fine-tune a model with one of the registered methods and the defenses that `settings` chains around it.

    A training that was killed goes on when it is started again with the same arguments, and ends with the same model;
    a complete one is not repeated. `out` gets `prepared_data/` (with `settings.before`), `model/` (the trained model,
    or its adapter), `training_log.jsonl`, `training.json`, and `after/` with one model folder a step of that chain;
    `final_model` names the last one. With `settings.generation` it holds `generation_defenses.json`.

    Args:
        settings: How to train.
        model: The start model. With `dtype: auto`, all parameters are trained in float32, because small updates vanish
            in bfloat16; LoRA keeps the start model's precision, and its adapters are float32.
        data: A file of conversations, the name of a data set, `tiny-world`, or conversations.
        out: Output folder.
        manifest: The robust modules, or None if the method needs none or `settings.modules` names the file.
        progress: Called after each step with the phase's name, the step and the number of steps.

    Raises:
        InputError: With every problem that can be found before the training begins, those of the chain included.
        RunError: If the loss stops being a number, or a step of the chain makes weights that are not finite.

    Example:
        >>> from securetune.config import ModelSettings, TrainingSettings
        >>> settings = TrainingSettings(method="ift", max_steps=200, after=["wise-ft"])
        >>> train(settings, ModelSettings(), "tiny-world", Path("tuned"))  # doctest: +SKIP
    """
    out = Path(out)
    checked = _check_around(settings, model, data, out, manifest)
    rows: str | Path | Sequence[Conversation] | PreparedData = data
    if checked.given is not None:
        given = checked.given
        rows = apply_before(settings.before, model, given.conversations, given.shapes, out / _PREPARED, progress)
    result = train_alone(without_chain(settings), model, rows, out, manifest, progress)
    _write_generation(checked.generation, apply_chain(checked.after, out, out, progress), out)
    return result


class _CheckedParts(NamedTuple):
    """What is chained around a training, found usable.

    Attributes:
        given: The data, if defenses are to prepare them.
        after: Steps on the weights.
        generation: Defenses at generation.
    """

    given: ReadConversations | None
    after: list[CheckedStep]
    generation: tuple[GenerationDefense, ...]


def _check_around(
    settings: TrainingSettings,
    model: ModelSettings,
    data: str | Path | Sequence[Conversation],
    out: Path,
    manifest: RobustModules | None,
) -> _CheckedParts:
    """Check all parts of the chain; what is wrong with the training itself is told beside their mistakes."""
    problems, after = ProblemList(), list[CheckedStep]()
    generation: tuple[GenerationDefense, ...] = ()
    with problems.collect():
        after = check_chain(settings, model)
    with problems.collect():
        generation = check_generation(settings, model)
    given: ReadConversations | None = None
    if settings.before:
        with ProblemList().collect():  # told by the training's own check
            given = read_training_data(data) if isinstance(data, str | Path) else ReadConversations(list(data), {})
        with problems.collect():
            check_before(settings.before, model, len(given.conversations) if given else None)
    if problems.found or settings.before:  # nothing is prepared for a training that cannot be done
        with problems.collect():
            check_training(without_chain(settings), model, given.conversations if given else data, out, manifest)
    problems.raise_if_any(InputError)
    return _CheckedParts(given, after, generation)


def without_chain(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings that decide the trained weights: all but what follows the training."""
    return settings.model_copy(update={"after": (), "generation": ()})


def check_generation(settings: TrainingSettings, model: ModelSettings) -> tuple[GenerationDefense, ...]:
    """Check the defenses at generation, and return them with their options filled in.

    Args:
        settings: The training's, with the chain.
        model: The start model, whose chat template the tuned one will have.

    Raises:
        InputError: With every mistake: unknown defenses or options, a template that does not show what they add.
    """
    defenses = chained_generation(settings.generation, model.name)
    check_shown(defenses, model, "generation")
    return defenses


def check_shown(defenses: Sequence[GenerationDefense], model: ModelSettings, at: str) -> None:
    """Refuse a model whose chat template does not show what defenses at generation add; a broken model is not told of.

    Raises:
        ConfigError: For each that it does not show.
    """
    if defenses and not check_model(model):
        check_templates(defenses, load_tokenizer(model, find_model(model.name)), at)


def _write_generation(defenses: Sequence[GenerationDefense], final: Path, out: Path) -> None:
    """Write down in the final model's folder what it is to be shown; no other folder says anything of it."""
    for folder in [out / "model", *(out / "after").glob("*")]:
        (folder / GENERATION_FILE).unlink(missing_ok=True)
        _write_card_section(folder / "README.md", [])
    if defenses:
        write_json(final / GENERATION_FILE, GenerationDefenses(steps=shown_steps(defenses)))
        _write_card_section(final / "README.md", generation_section(defenses))


def _write_card_section(card: Path, section: Sequence[str]) -> None:
    """Replace what a card says at its end of the defenses at generation."""
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    own = text.partition(f"\n{GENERATION_HEADING}\n")[0]
    wanted = "\n".join([own.rstrip("\n"), "", *section]) if section else own
    if wanted != text:
        write_text(card, wanted)


def check_chain(settings: TrainingSettings, model: ModelSettings) -> list[CheckedStep]:
    """Check the steps that follow the training, before anything begins.

    Args:
        settings: The training's, with the chain.
        model: The start model.

    Raises:
        InputError: With every mistake: unknown defenses or settings, models that are missing, not used, of another
            architecture or quantized, a quantized start model whose adapter would have to be merged.
    """
    problems = ProblemList()
    checked: list[CheckedStep] = []
    is_adapter = settings.tune == "lora"
    for place, step in enumerate(settings.after):
        found: CheckedStep | None = None
        with problems.collect():
            found = _checked(step, model, is_adapter, f"after.{place}")
        if found is not None:
            checked.append(found)
            is_adapter = is_adapter and not found.merges_first
    problems.raise_if_any(InputError)
    return checked


def _checked(step: ChainStep, model: ModelSettings, is_adapter: bool, at: str) -> CheckedStep:
    options = {key: value for key, value in step.options.items() if key not in ROLES}
    given = {key: str(value) for key, value in step.options.items() if key in ROLES}
    try:
        defense = find_weight_defense(step.name).from_options(options)
        merges_first = is_adapter and not defense.for_adapters
        if merges_first and is_quantized(model):
            raise ConfigError(
                f"{step.name} works on whole weights, and an adapter cannot be merged into a quantized start model"
            )
        sources = _sources(defense, given, model)
        if others := [name for role, name in sources.items() if role in given]:
            check_same_architecture(model.name, others)
    except InputError as error:
        told = [problem.replace(" --", " ") for problem in error.problems]  # in a file the roles are no flags
        raise ConfigError([f"{at}: {problem}" for problem in told]) from None
    return CheckedStep(step.name, options, sources, merges_first)


def _sources(defense: WeightDefense, given: dict[str, str], model: ModelSettings) -> dict[str, str]:
    """Return the other models by role; the start model is known, unless the defense makes no use of it."""
    roles = resolve_roles(defense, {role: name for role, name in given.items() if role != "start"}, model.name)
    if "start" in given:
        raise ConfigError(f"{defense.name}: start is the model of the training; leave it out")
    return roles


def apply_chain(
    steps: Sequence[CheckedStep], trained: Path, out: Path, progress: ProgressCallback | None = None
) -> Path:
    """Apply the steps that have no result yet, and return the folder of the final model.

    Args:
        steps: As `check_chain` returns them.
        trained: The training's folder.
        out: Folder for `after/`.
        progress: Called after each tensor.
    """
    model = trained / "model"
    for step, folder in zip(steps, _folders(steps, out), strict=True):
        if step.merges_first:
            model = _merged(model, folder.parent / _MERGED)
        if not (folder / PATCH_FILE).exists():
            patch_weights(model, step.name, folder, step.sources, step.options, progress)
        model = folder
    return model


def final_model(settings: TrainingSettings, model: ModelSettings, out: Path) -> Path:
    """Return the folder of the model that a training and its chain leave in `out`."""
    folders = _folders(check_chain(settings, model), out)
    return folders[-1] if folders else out / "model"


def _folders(steps: Sequence[CheckedStep], out: Path) -> list[Path]:
    """Name each step's folder after all that was done up to it, so that another chain never takes its result over."""
    folders = []
    for place, step in enumerate(steps):
        digest = sha256_json([[each.name, each.options, each.sources] for each in steps[: place + 1]])[:8]
        folders.append(out / "after" / f"{place + 1}-{step.name}-{digest}")
    return folders


def _merged(adapter: Path, folder: Path) -> Path:
    """Merge the adapter once; the folder appears when it is complete."""
    if not folder.exists():
        merge(adapter, folder)
    return folder
