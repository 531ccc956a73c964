"""What a plan says."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from securetune.artifacts import TrainingData
from securetune.artifacts.estimates import Artifact


class MemoryEstimate(Artifact):
    """Peak memory of a phase on one device, in bytes; an estimate.

    Attributes:
        weights: All parameters, in the precision they are held in.
        gradients: Of the parameters that train in the phase.
        optimizer: AdamW's two states of each of these.
        activations: By a rule of thumb, for a batch as wide as the longest row.
        total: The sum.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    total: int


class PlannedGroup(Artifact):
    """Parameters with one learning rate.

    Attributes:
        name: Such as `robust`.
        parameter_count: Numbers that train; an estimate while the split is not known.
        share: Of all parameters of the model, adapters included, in [0, 1].
        learning_rate: Peak.
    """

    name: str
    parameter_count: int
    share: float
    learning_rate: float


class PlannedPhase(Artifact):
    """One phase.

    Attributes:
        name: Such as `warmup`.
        steps: Optimizer steps on the training data.
        alignment_steps: Optimizer steps between them on rows of the method's own.
        groups: What trains.
        memory: Peak, an estimate.
    """

    name: str
    steps: int
    alignment_steps: int = 0
    groups: list[PlannedGroup]
    memory: MemoryEstimate


class PlannedDataStep(Artifact):
    """A defense on the data.

    Attributes:
        defense: Registered name.
        purpose: `defense`, `control` or `attack`.
        rows_before: Conversations that come in.
        rows_after: Conversations that it leaves.
    """

    defense: str
    purpose: str
    rows_before: int
    rows_after: int


class PlannedTraining(Artifact):
    """One method.

    Attributes:
        label: In the recipe.
        method: Registered name.
        tune: `full` or `lora`.
        robust_modules: Names, or None while the search is still to find them.
        target_fraction: Share of the projections' parameters that the search aims at, while it is still to come.
        parameter_count: All parameters, adapters included.
        phases: In their order.
        before: Defenses on the data.
        after: Defenses on the finished weights, by name.
        generation: Defenses at generation, by name.
        notes: What the method has to say of it.
    """

    label: str
    method: str
    tune: str
    robust_modules: list[str] | None
    target_fraction: float | None
    parameter_count: int
    phases: list[PlannedPhase]
    before: list[PlannedDataStep] = Field(default_factory=list)
    after: list[str] = Field(default_factory=list)
    generation: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class MappedType(Artifact):
    """Where one type of projection lies.

    Attributes:
        type: One of Q, K, V, O, Gate, Up, Down.
        layers: Indices.
        parameter_count: Over all layers.
        share: Of the model's parameters, in [0, 1].
        stored: How: as a weight of its own, as a part of a fused one, or with all experts in one.
    """

    type: str
    layers: list[int]
    parameter_count: int
    share: float
    stored: str


class ExampleSegment(Artifact):
    """Neighbouring tokens of the example that all carry loss, or all do not.

    Attributes:
        text: As the tokenizer decodes it.
        tokens: How many.
        trained: Whether they carry loss.
    """

    text: str
    tokens: int
    trained: bool


class Plan(Artifact):
    """What a configuration would do.

    Attributes:
        config: Resolved, with all defaults.
        architecture: Class of the model.
        parameter_count: Of the start model.
        modules: The module map, by type.
        mapped_by: `registered names`, or `structure` for a model type that is not registered.
        data: What becomes of the conversations.
        example: The first row of the training data.
        trainings: One a method; each runs once a seed.
        seeds: Number of seeds.
        memory_assumptions: What the memory estimates take for granted.
        notes: Sentences a user should read.
    """

    config: dict[str, Any]
    architecture: str
    parameter_count: int
    modules: list[MappedType]
    mapped_by: str
    data: TrainingData
    example: list[ExampleSegment]
    trainings: list[PlannedTraining]
    seeds: int
    memory_assumptions: str
    notes: list[str]
