"""SaLoRA (arXiv 2501.01765): adapters that cannot reach the outputs by which harmful requests are known.

For a projection W let U_C be the first r_s left singular vectors of its outputs W·X_h over harmful requests, and
C_S = I - U_C·U_Cᵀ, the fixed safety module. The adapter is C_S·B·A: whatever it learns, U_Cᵀ of every output stays. Its
start is made for the task: with W ≈ U_W·S_W·V_Wᵀ cut to the adapter's rank, and U_T the first r_t left singular vectors
of the outputs W·X_T over the task's own rows, B₀ = U_T·U_Tᵀ·U_W·√S_W and A₀ = √S_W·V_Wᵀ; the frozen part is
W - C_S·B₀·A₀.

Fidelity: of the paper the abstract and descriptions were at hand, and its authors' code, which this follows: the
formulas above, 32 for r_s and r_t, and 128 rows of the task. Ours:

- X_h are the requests and the model's own answers to them, rendered with its chat template; their code has requests
  with safe answers, and counts the tokens of the answers alone. X_T are whole rows of the user's data; theirs are the
  answers in rows of a general data set. Singular vectors are exact; theirs come from a randomised method.
- The adapter has a scale s (alpha/rank), theirs is 1: s·C_S·B₀·A₀ is what theirs is at the start.
- C_S is no factor of its own: B stays in its range. See `confined_adapters`, which also says why that is the same
  training, and `adapted_weights` for how the frozen part is kept, and the adapter saved. Theirs is saved with C_S
  beside it, and needs a PEFT of its own.
- Which projections have adapters is the user's choice (`lora.target_types`); theirs are Q and V. A fused weight is one
  matrix.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from securetune.config import PositiveInt, Settings
from securetune.data.prompts import Prompt
from securetune.defenses.adapted_weights import AdaptedWeight, Start
from securetune.defenses.base import DefenseContext
from securetune.defenses.confined_adapters import ConfinedAdapters, Confinement
from securetune.defenses.harmful_requests import request_moments
from securetune.defenses.protected_subspace.input_moments import second_moments
from securetune.defenses.registry import register_defense
from securetune.defenses.request_options import RequestOptions
from securetune.errors import ConfigError


class SaLoraOptions(RequestOptions):
    """Options of `salora`.

    Attributes:
        safety_rank: r_s (≥ 0): output directions of each projection that no adapter reaches; below the number of its
            outputs. 32, the authors', who have 4,096 outputs. 0: none.
        task_rank: r_t (≥ 1): output directions of the task with which adapters begin. 32, the authors'.
        task_rows: Rows of the training data from which these are found, a draw (≥ 0). 128, the authors'. 0:
            adapters begin at zero, as plain LoRA's do; with a `safety_rank` of 0 it is plain LoRA.
    """

    safety_rank: Annotated[int, Field(ge=0)] = 32
    task_rank: PositiveInt = 32
    task_rows: Annotated[int, Field(ge=0)] = 128


@register_defense("salora")
class SafeAdapters(ConfinedAdapters):
    """SaLoRA: adapters that cannot reach the outputs by which harmful requests are known.

    The saved adapter has twice the rank that trained, unless it begins at zero. It decomposes each adapted weight once
    before training (SVD in float64). DoRA, quantized models, stacked experts, sharded weights (FSDP2, DeepSpeed ZeRO)
    and full tuning are refused.
    """

    source = "arXiv 2501.01765"
    options_type: ClassVar[type[Settings]] = SaLoraOptions
    side = "outputs"

    @property
    def own(self) -> SaLoraOptions:
        """The options, with their type."""
        assert isinstance(self.options, SaLoraOptions)
        return self.options

    @property
    def acts(self) -> bool:
        """Whether adapters begin elsewhere, or are confined."""
        return self.own.safety_rank > 0 or self.own.task_rows > 0

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests, if any direction is held for them."""
        return self.own.requests(model_name) if self.own.safety_rank > 0 else []

    def confine(
        self, model: nn.Module, weights: Sequence[AdaptedWeight], context: DefenseContext
    ) -> dict[str, Confinement]:
        """Decompose each weight and its outputs.

        Raises:
            ConfigError: If a weight has too few outputs or components, or there are no rows to begin with.
        """
        _require_room(model, weights, self.own)
        holders = {each.path: each.module.holder_in(model) for each in weights}
        rows = some_rows(context.rows, self.own.task_rows)
        if self.own.task_rows and not rows:
            raise ConfigError("salora: there are no training rows to begin with. Set method_options.task_rows to 0.")
        harmful = request_moments(model, holders, self.own, context, self.name) if self.own.safety_rank else {}
        task = second_moments(model, holders, rows, self.own.batch_size) if rows else {}
        found = {}
        for each in weights:
            weight = each.values_in(model)
            held = weight[:, :0] if not harmful else output_directions(weight, harmful[each.path], self.own.safety_rank)
            start = None
            if rows:
                used = output_directions(weight, task[each.path], self.own.task_rank)
                start = task_part(weight, used, each.rank, each.scale)
            found[each.path] = Confinement(held, start)
        return found

    def evidence(self) -> dict[str, Any]:
        """Return how many output directions of each projection are held."""
        held = {path: each.shape[1] for path, each in self.directions.items()}
        return {"held_directions": held} if held else {}


def output_directions(
    weight: Float[Tensor, "out in"], moment: Float[Tensor, "_in _in"], rank: int
) -> Float[Tensor, "out held"]:
    """Return the first left singular vectors of W·X: the first eigenvectors of W·(X·Xᵀ)·Wᵀ, but none of eigenvalue 0.

    Args:
        weight: W.
        moment: X·Xᵀ.
        rank: Most of them.

    Example:
        >>> output_directions(torch.diag(torch.tensor([1.0, 3.0])), torch.eye(2), 1).abs().T.float()
        tensor([[0., 1.]])
    """
    weight = weight.double()
    values, vectors = torch.linalg.eigh(weight @ moment.double() @ weight.mT)
    rounding = values.shape[0] * torch.finfo(torch.float32).eps * values[-1].clamp_min(0)  # the inputs' precision
    return vectors.flip(1)[:, : min(rank, int((values > rounding).sum()))]


def task_part(weight: Float[Tensor, "out in"], used: Float[Tensor, "out used"], rank: int, scale: float) -> Start:
    """Return the first components of W as an adapter, its outputs limited to the task's.

    Args:
        weight: W.
        used: U_T.
        rank: How many components.
        scale: What the adapter's B·A is multiplied by.
    """
    left, sizes, right = torch.linalg.svd(weight.double(), full_matrices=False)
    shares = (sizes[:rank] / scale).sqrt()
    return Start(used @ (used.mT @ left[:, :rank]) * shares, shares[:, None] * right[:rank])


def some_rows(rows: Iterable[Mapping[str, Any]], count: int) -> list[list[int]]:
    """Return the tokens of some training rows, the same at every call: a draw, or the first ones of a stream.

    Packed rows are taken apart.
    """
    listed: Any = rows
    if isinstance(rows, Sized):
        places = sorted(random.Random(0).sample(range(len(listed)), min(count, len(listed))))
        chosen = [listed[place] for place in places]
    else:
        chosen = list(islice(iter(listed), count))
    return [part for row in chosen for part in _apart(list(row["input_ids"]), row.get("seq_lengths"))][:count]


def _apart(tokens: list[int], lengths: Sequence[int] | None) -> list[list[int]]:
    if lengths is None:
        return [tokens]
    ends = [sum(lengths[: place + 1]) for place in range(len(lengths))]
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _require_room(model: nn.Module, weights: Sequence[AdaptedWeight], own: SaLoraOptions) -> None:
    problems = []
    narrow = min(weights, key=lambda each: each.size_in(model)[0])
    outputs = narrow.size_in(model)[0]
    if own.safety_rank >= outputs:
        problems.append(
            f"method_options.safety_rank must be below {outputs}, the outputs of {narrow.path}; got {own.safety_rank}"
        )
    small = min(weights, key=lambda each: min(each.size_in(model)) - each.rank)
    if own.task_rows and small.rank > min(small.size_in(model)):
        problems.append(
            f"lora.rank must be at most {min(small.size_in(model))}, the components of {small.path}; got {small.rank}"
        )
    if problems:
        raise ConfigError(problems)
