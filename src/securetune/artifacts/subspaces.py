"""What `securetune protect` and a protected training write beside the directions themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from securetune.artifacts.estimates import Artifact, ModelIdentity


class ProtectedInput(Artifact):
    """The saved directions of one input, which several projections may share.

    Attributes:
        paths: Of the weights that have this input, such as `model.layers.2.self_attn.q_proj`. The first one names its
            tensors: `<path>.directions` (width × rank) and `<path>.values` (rank).
        width: Values of the input.
        rank: Number of directions.
        trace: Of the second moment: Σ ‖x‖² over all tokens.
        energy: Share of it that was asked for, in [0, 1).
        energy_held: Share that the directions hold, in [0, 1]; a lower bound if they come from a sketch.
        range_finder: How they were found.
    """

    paths: list[str] = Field(min_length=1)
    width: int = Field(ge=1)
    rank: int = Field(ge=0)
    trace: float = Field(ge=0.0, allow_inf_nan=False)
    energy: float = Field(ge=0.0, lt=1.0)
    energy_held: float = Field(ge=0.0, le=1.0)
    range_finder: Literal["exact", "randomised"]


class SavedSubspaces(Artifact):
    """`subspaces.json`: which directions lie in `subspaces.safetensors`, and what they were gathered from.

    Attributes:
        key: Hash of all that they depend on: model, prompts, options and energies.
        model: The start model.
        prompts_hash: Hash of the prompts, which lie in `prompts.jsonl`.
        prompts: Number of those.
        tokens: Tokens that were gathered, those of the model's own answers included.
        settings: Options of `protected-subspace`, defaults included.
        modules: Projection → the share of the energy that was asked for.
        inputs: In the model's order.
        weights_hash: SHA-256 of `subspaces.safetensors`.
        environment: Package versions and hardware.
    """

    format: Literal["securetune.subspaces/1"] = "securetune.subspaces/1"
    key: str
    model: ModelIdentity
    prompts_hash: str
    prompts: int = Field(ge=1)
    tokens: int = Field(ge=1)
    settings: dict[str, Any]
    modules: dict[str, float]
    inputs: list[ProtectedInput]
    weights_hash: str
    environment: dict[str, str]
