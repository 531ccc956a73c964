"""What training writes: `training.json`, and the identity of what it was asked for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from securetune.artifacts.estimates import Artifact, ModelIdentity


class TrainingInputs(Artifact):
    """`training_inputs.json`: what a training folder was begun with; another run must not go on in it.

    Attributes:
        settings: Resolved training settings.
        model: Model settings.
        data_hash: Hash of the conversations that are trained on; None as long as defenses have not prepared them.
        given_hash: Hash of the conversations before such defenses, or None if there are none.
        modules_hash: Hash of the manifest, or None if there is none.
        alignment_hash: Hash of the rows that the method has of its own, or None if it has none.
        identity: The start model; known once its weights are loaded.
    """

    format: Literal["securetune.training_inputs/1"] = "securetune.training_inputs/1"
    settings: dict[str, Any]
    model: dict[str, Any]
    data_hash: str | None
    given_hash: str | None = None
    modules_hash: str | None
    alignment_hash: str | None = None
    identity: ModelIdentity | None = None


class UpdateNorm(Artifact):
    """How far a set of weights moved.

    Attributes:
        absolute: ‖ΔW‖ (Frobenius, over the whole set).
        relative: ‖ΔW‖ / ‖W‖, with W as it was before.
    """

    absolute: float = Field(ge=0.0)
    relative: float = Field(ge=0.0)


class WeightUpdate(Artifact):
    """How far the weights moved, by set. Under LoRA ΔW is the change of scale·B·A.

    Attributes:
        inside: Over the modules in Mods_Rob, or None without a manifest.
        outside: Over all other projection modules, or None if there is none.
        other: Over embeddings, norms and the head, or None under LoRA, which has no adapter there.
        modules: Module → ‖ΔW‖ / ‖W‖; under LoRA only the modules with an adapter.
    """

    inside: UpdateNorm | None
    outside: UpdateNorm | None
    other: UpdateNorm | None
    modules: dict[str, float]


class TrainedGroup(Artifact):
    """One group of parameters of a phase.

    Attributes:
        name: `all`, `robust` or `rest`.
        learning_rate: Peak rate.
        parameter_count: Number of weights in it.
    """

    name: str
    learning_rate: float
    parameter_count: int = Field(ge=1)


class PhaseResult(Artifact):
    """One complete phase.

    Attributes:
        name: `warmup` or `main`.
        steps: Optimizer steps on the training data.
        alignment_steps: Optimizer steps between them on rows of the method's own.
        groups: What trained; everything else was frozen.
        first_loss_nats_per_token: Mean loss over the first logged steps.
        last_loss_nats_per_token: Mean loss over the last logged steps.
        update: From the beginning to the end of this phase.
        duration_seconds: Wall time, over all starts, of the steps that were kept.
    """

    name: str
    steps: int
    alignment_steps: int = 0
    groups: list[TrainedGroup]
    first_loss_nats_per_token: float
    last_loss_nats_per_token: float
    update: WeightUpdate
    duration_seconds: float


class DataStep(Artifact):
    """What one defense did to the data.

    Attributes:
        defense: Registered name.
        purpose: `defense`, `control` or `attack`.
        options: Its options, defaults included.
        rows_before: Conversations that came in.
        added: Conversations that it added.
        dropped: Conversations that it dropped.
        rows_after: Conversations that it left.
        hash: Hash of those.
        facts: What else it tells, such as the hash of its samples or the layer that it looked at.
    """

    defense: str
    purpose: Literal["defense", "control", "attack"]
    options: dict[str, Any]
    rows_before: int
    added: int
    dropped: int
    rows_after: int
    hash: str
    facts: dict[str, Any] = Field(default_factory=dict)


class DataPreparation(Artifact):
    """`data.json`: training data as the defenses on them left them; beside it lie the conversations.

    Attributes:
        key: Hash of all that they depend on but the model's weights: the defenses, what they read, and the data.
        given_hash: Hash of the conversations as given.
        given: Number of those.
        shapes: Shape of the rows of the file or data set that was given → number of rows.
        hash: Hash of the conversations that are trained on.
        conversations: Number of those.
        steps: The defenses in their order.
        model: The start model, if a defense looked at it.
        duration_seconds: Wall time.
        environment: Package versions and hardware.
    """

    format: Literal["securetune.data/1"] = "securetune.data/1"
    key: str
    given_hash: str
    given: int
    shapes: dict[str, int] = Field(default_factory=dict)
    hash: str
    conversations: int
    steps: list[DataStep]
    model: ModelIdentity | None = None
    duration_seconds: float
    environment: dict[str, str]


class TrainingData(Artifact):
    """What the model was trained on.

    Attributes:
        hash: Hash of the conversations.
        conversations: Number of conversations, as defenses on the data left them.
        shapes: Shape the rows were recognised as (`messages`, `sharegpt`, `alpaca`, `prompt/completion`, …) → their
            number; empty if conversations were given and not a file.
        rows: Token rows made of them (more, if a template shows an earlier turn differently from the last).
        cut_rows: Rows longer than the longest allowed, cut at their end.
        cut_tokens: Tokens lost by it, those of dropped rows included.
        dropped_rows: Rows of which the cut left no answer; they are not trained on.
        max_length_tokens: Longest row allowed.
        tokens: Tokens a pass over the data.
        answer_tokens: Those of them that carry loss.
        packed_sequences: Sequences that the rows were packed into, or None without packing.
        packing_efficiency: Share of those sequences' places, in (0, 1], that hold a token, or None without packing.
        preparation: What defenses did to the conversations before, or None if there were none.
    """

    hash: str
    conversations: int
    shapes: dict[str, int] = Field(default_factory=dict)
    rows: int
    cut_rows: int
    cut_tokens: int = 0
    dropped_rows: int
    max_length_tokens: int
    tokens: int
    answer_tokens: int
    packed_sequences: int | None = None
    packing_efficiency: float | None = Field(default=None, gt=0.0, le=1.0)
    preparation: DataPreparation | None = None


class TrainingResult(Artifact):
    """`training.json`: a complete training. The tuned model is beside it, in `model/`.

    Attributes:
        method: Registered name of the defense.
        model: The start model.
        settings: Training settings as given.
        resolved: What the settings left open: base learning rate, steps of the main phase, precision, device.
        selection: How the manifest was made (`searched`, `sensitive`, `random`, …), or None without one.
        robust_modules: Names of the modules in Mods_Rob.
        modules_without_adapter: Those of them that LoRA's `target_types` leave out, and that therefore cannot learn.
        data: What was trained on.
        phases: In their order.
        update: From the start model to the tuned one.
        alignment_data: Rows of the method's own, by its name for them.
        evidence: What the method found out on the way, such as the layers that it froze and why.
        notes: Sentences a user should read, such as a chat template that never ends an answer.
        duration_seconds: Wall time of the phases.
        environment: Package versions and hardware.
    """

    format: Literal["securetune.training/1"] = "securetune.training/1"
    method: str
    model: ModelIdentity
    settings: dict[str, Any]
    resolved: dict[str, Any]
    selection: str | None
    robust_modules: list[str]
    modules_without_adapter: list[str]
    data: TrainingData
    phases: list[PhaseResult]
    update: WeightUpdate
    alignment_data: dict[str, TrainingData] = Field(default_factory=dict)
    evidence: dict[str, Any] = Field(default_factory=dict)
    notes: list[str]
    duration_seconds: float
    environment: dict[str, str]
