"""From a configuration to what it would do, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from securetune.artifacts import RobustModules, read_artifact, sha256_json
from securetune.config import RunConfig, SearchSettings, TrainConfig, TrainingSettings
from securetune.data.conversations import Conversation, read_training_data
from securetune.defenses import (
    DataContext,
    Defense,
    DefenseContext,
    ParameterSets,
    Phase,
    defense_of,
    find_data_defense,
)
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.models import ChatModel, architecture_of, is_quantized, load_skeleton, map_modules
from securetune.models.checks import load_tokenizer
from securetune.models.registry import find_model
from securetune.pipeline.checks import check_run, check_train
from securetune.pipeline.folder import resolved_config
from securetune.pipeline.jobs import needs_manifest, needs_search
from securetune.pipeline.planning.example import segments
from securetune.pipeline.planning.memory import ASSUMPTIONS, estimate_memory
from securetune.pipeline.planning.module_map import map_by_type
from securetune.pipeline.planning.planned import (
    ExampleSegment,
    Plan,
    PlannedDataStep,
    PlannedGroup,
    PlannedPhase,
    PlannedTraining,
)
from securetune.pipeline.preparing import data_defenses
from securetune.pipeline.skeletons import TrainingSkeleton, make_training_skeleton
from securetune.training.checks import check_weights_can_train, warmup_problems
from securetune.training.encoding import EncodedConversations
from securetune.training.parameters import owners_of
from securetune.training.train import base_learning_rate, encode_for_training, main_phase_steps

_ROBUST, _REST = "(robust)", "(rest)"


def plan(config: RunConfig | TrainConfig) -> Plan:
    """Say what a run, or one training, would do; takes seconds, loads no weights and writes nothing.

    Args:
        config: The resolved configuration, as `securetune run` or `securetune train` takes it.

    Raises:
        InputError: With every mistake found.

    Example:
        >>> from securetune.config import ModelSettings
        >>> planned = plan(TrainConfig(model=ModelSettings(), data="tiny-world", training={"method": "ift"}))
        >>> [phase.steps for phase in planned.trainings[0].phases]
        [1500]
    """
    check_run(config, None) if isinstance(config, RunConfig) else check_train(config)
    planner = _Planner(config)
    problems = ProblemList()
    trainings = []
    for label, settings in _trainings(config).items():
        with problems.collect():
            trainings.append(planner.training(label, settings))
    problems.raise_if_any(InputError)
    return planner.plan(trainings)


def _trainings(config: RunConfig | TrainConfig) -> dict[str, TrainingSettings]:
    if isinstance(config, TrainConfig):
        return {config.training.method: config.training}
    return {label: config.training_for(label, config.seeds[0]) for label in config.methods}


class _Rows(NamedTuple):
    """Training rows, the length of the longest in tokens, and what defenses do to the data before."""

    encoded: EncodedConversations
    longest: int
    steps: list[PlannedDataStep]


@dataclass(frozen=True)
class _Sizes:
    """Parameters by name, or by set while the split is not known; and how many there are besides adapters."""

    by_name: Mapping[str, int]
    base: int
    adapters: int


class _Planner:
    """What the trainings of one configuration share: model, tokenizer and data are read once."""

    def __init__(self, config: RunConfig | TrainConfig) -> None:
        self._config = config
        self._skeleton: PreTrainedModel = load_skeleton(config.model)
        self._modules = map_modules(self._skeleton)
        self._architecture = architecture_of(self._skeleton)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(config.model, find_model(config.model.name))
        self._conversations, self._shapes = read_training_data(config.data)
        self._encoded: dict[tuple[str, str, int, str, bool], _Rows] = {}

    def training(self, label: str, settings: TrainingSettings) -> PlannedTraining:
        """Plan one method."""
        try:
            return self._training(label, settings)
        except InputError as error:
            where = f"methods.{label}: " if isinstance(self._config, RunConfig) else ""
            raise ConfigError([where + problem for problem in error.problems]) from None

    def _training(self, label: str, settings: TrainingSettings) -> PlannedTraining:
        check_weights_can_train(settings, self._config.model)
        rows = self._rows(settings)
        steps = main_phase_steps(settings, len(rows.encoded.dataset))
        defense = defense_of(settings)
        if problems := warmup_problems(defense, steps, settings):
            raise ConfigError(problems)
        is_known = not needs_search(settings)
        manifest = (
            read_artifact(Path(settings.modules), RobustModules) if is_known and needs_manifest(settings) else None
        )
        # While the split is not known, the model is built for plain fine-tuning, which trains the same parameters.
        built = settings if is_known else settings.model_copy(update={"method": "ift"})
        training = make_training_skeleton(self._config.model, built, manifest, steps)
        sizes = _sizes(training)
        phases = training.phases if is_known else _phases_of_unknown_sets(settings, steps)
        fraction = self._search_of(label).target_fraction
        sizes = sizes if is_known else self._estimated(sizes, training, fraction)
        return PlannedTraining(
            label=label,
            method=settings.method,
            tune=settings.tune,
            robust_modules=[module.name for module in training.robust_modules] if is_known else None,
            target_fraction=None if is_known else fraction,
            parameter_count=sizes.base + sizes.adapters,
            phases=[self._phase(phase, settings, sizes, rows) for phase in phases],
            before=rows.steps,
            after=[step.name for step in settings.after],
            generation=[step.name for step in settings.generation],
            notes=training.defense.notes() if is_known else [],
        )

    def _rows(self, settings: TrainingSettings) -> _Rows:
        """Encode the data, once for all methods that leave it as it is."""
        defense = defense_of(settings)
        prepares = type(defense).prepare_data is not Defense.prepare_data
        before = sha256_json([step.model_dump(mode="json") for step in settings.before])
        key = (before, settings.method if prepares else "", settings.max_length, settings.loss_on, settings.packing)
        if key not in self._encoded:
            config = self._skeleton.config
            conversations, steps = self._preview(settings)
            rows = encode_for_training(defense, conversations, settings, self._tokenizer, config)
            self._encoded[key] = _Rows(rows, max(map(len, rows.dataset["input_ids"])), steps)
        return self._encoded[key]

    def _preview(self, settings: TrainingSettings) -> tuple[Sequence[Conversation], list[PlannedDataStep]]:
        """Apply the defenses on the data as far as they need no weights."""
        rows: Sequence[Conversation] = self._conversations
        steps = []
        for defense in data_defenses(settings.before):
            changed = defense.preview(rows, DataContext(self._config.model.name, _no_model)).conversations
            before, after = len(rows), len(changed)
            steps.append(
                PlannedDataStep(defense=defense.name, purpose=defense.purpose, rows_before=before, rows_after=after)
            )
            rows = changed
        return rows, steps

    def _phase(self, phase: Phase, settings: TrainingSettings, sizes: _Sizes, rows: _Rows) -> PlannedPhase:
        groups = []
        for group in phase.groups:
            count = sum(sizes.by_name[name] for name in group.parameter_names)
            share = count / (sizes.base + sizes.adapters)
            rate = float(f"{group.learning_rate:.12g}")
            groups.append(PlannedGroup(name=group.name, parameter_count=count, share=share, learning_rate=rate))
        trained = sum(group.parameter_count for group in groups)
        counts = (sizes.base, sizes.adapters)
        memory = estimate_memory(self._skeleton.config, self._config.model, settings, counts, trained, rows.longest)
        return PlannedPhase(
            name=phase.name,
            steps=phase.steps,
            alignment_steps=phase.alignment_steps,
            groups=groups,
            memory=memory,
        )

    def _search_of(self, label: str) -> SearchSettings:
        return self._config.search_for(label) if isinstance(self._config, RunConfig) else SearchSettings()

    def _estimated(self, sizes: _Sizes, training: TrainingSkeleton, fraction: float) -> _Sizes:
        """Divide what trains as the search's target says; embeddings, norms and head go where the settings say."""
        paths = {module.path for module in training.modules}
        names = training.parameters.all
        owners = owners_of(training.network, paths)
        projections = sum(sizes.by_name[name] for name in names if owners[name] is not None)
        others = sum(sizes.by_name[name] for name in names) - projections
        robust = round(fraction * projections)
        robust += others if training.settings.other_parameters == "robust" else 0
        return _Sizes({_ROBUST: robust, _REST: projections + others - robust}, sizes.base, sizes.adapters)

    def _example(self) -> list[ExampleSegment]:
        """Return the first row as the first method sees it, also where several rows are packed into a sequence."""
        settings = next(iter(_trainings(self._config).values())).model_copy(update={"packing": False})
        return segments(self._tokenizer, self._rows(settings).encoded.dataset[0])

    def _quantization_notes(self) -> list[str]:
        if not is_quantized(self._config.model):
            return []
        return [
            "The start model is quantized, which the memory estimate leaves out: it counts the weights in full. "
            "Training such a model (QLoRA) needs bitsandbytes and has been tried on a CPU only."
        ]

    def _map_notes(self) -> list[str]:
        if not self._architecture.by_structure:
            return []
        return [
            f'Model type "{self._architecture.model_type}" is not registered: the module map was made by structure, '
            "from standard names that the shapes confirm. Compare it with the model's code before a long training."
        ]

    def plan(self, trainings: list[PlannedTraining]) -> Plan:
        """Put together what the trainings share."""
        rows = next(iter(self._encoded.values())).encoded
        count = sum(parameter.numel() for parameter in self._skeleton.parameters())
        config = self._config
        return Plan(
            config=resolved_config(config) if isinstance(config, RunConfig) else config.model_dump(mode="json"),
            architecture=type(self._skeleton).__name__,
            parameter_count=count,
            modules=map_by_type(self._modules, count),
            mapped_by="structure" if self._architecture.by_structure else "registered names",
            data=rows.counts.model_copy(update={"shapes": self._shapes}),
            example=self._example(),
            trainings=trainings,
            seeds=len(config.seeds) if isinstance(config, RunConfig) else 1,
            memory_assumptions=ASSUMPTIONS,
            notes=[
                *rows.notes,
                *self._map_notes(),
                *self._quantization_notes(),
                *_search_notes(trainings),
                *_data_notes(trainings),
                *dict.fromkeys(note for training in trainings for note in training.notes),
            ],
        )


def _no_model() -> ChatModel:
    raise AssertionError("a plan loads no weights")


def _data_notes(trainings: list[PlannedTraining]) -> list[str]:
    looking = {
        step.defense
        for training in trainings
        for step in training.before
        if find_data_defense(step.defense).needs_model
    }
    return [
        f"Which rows {name} drops is known once the start model has scored them; until then the first ones stand for "
        "those that are kept, in the counts of tokens too."
        for name in sorted(looking)
    ]


def _sizes(training: TrainingSkeleton) -> _Sizes:
    by_name = {name: parameter.numel() for name, parameter in training.network.named_parameters()}
    adapters = sum(size for name, size in by_name.items() if ".lora_" in name)
    return _Sizes(by_name, sum(by_name.values()) - adapters, adapters)


def _phases_of_unknown_sets(settings: TrainingSettings, steps: int) -> list[Phase]:
    """Ask the method for its phases over two names that stand for the sets."""
    sets = ParameterSets((_ROBUST,), (_REST,))
    return defense_of(settings).phases(DefenseContext(settings, base_learning_rate(settings), steps, sets))


def _search_notes(trainings: list[PlannedTraining]) -> list[str]:
    waiting = [training for training in trainings if training.robust_modules is None]
    if not waiting:
        return []
    labels = ", ".join(training.label for training in waiting)
    aims = " or ".join(f"{fraction:.0%}" for fraction in sorted({each.target_fraction or 0.0 for each in waiting}))
    return [
        f"Which modules are robust is known after the search only ({labels}); it aims at "
        f"{aims} of the projections' parameters, and may find fewer. "
        "The shares shown are those of the target."
    ]
