"""Defenses on finished weights: tensor by tensor, so that files of any size and models in memory are treated alike."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from securetune.defenses.base import Defense, DefenseContext
from securetune.defenses.weight_sources import RoleReader, WeightRole
from securetune.errors import ConfigError
from securetune.models import ProjectionModule

BLOCK_VALUES = 1 << 20
"""Values worked on at once, element by element: 4 MiB in float32, so that the steps of a formula stay in the cache, and
what a tensor of a billion values needs beside itself is small. It also fixes the order in which DARE draws."""


class ModuleDecision(NamedTuple):
    """What was decided on one projection.

    Attributes:
        name: As `map_modules` has it; behind it `#` and a number for one expert of a stack.
        cosine: Between the update and its projection, or None if one of them is zero.
        projected: Whether the update was replaced.
    """

    name: str
    cosine: float | None
    projected: bool


class PatchedTensor(NamedTuple):
    """A tensor as a defense leaves it.

    Attributes:
        values: In the precision it came in; the very object that came in, if nothing changed.
        modules: What was decided on the projections in it; none if the defense decides nothing by module.
    """

    values: Float[Tensor, "*shape"]
    modules: tuple[ModuleDecision, ...] = ()


@dataclass(frozen=True)
class WeightDefenseConfig:
    """What every defense on weights can be told.

    Attributes:
        strength: How much of it is done, ≥ 0; at 0 the weights keep every bit.
    """

    strength: float = 1.0

    def problems(self) -> list[str]:
        """Return one sentence for each setting out of its range."""
        return []


class WeightDefense(Defense, ABC):
    """Base of the defenses on weights. All arithmetic is done in float32 (float64 for float64 weights), then rounded.

    Attributes:
        config: Its settings.
        config_type: The class of its settings.
        for_adapters: Whether it can be applied to a LoRA adapter's factors.
    """

    stage: ClassVar[Literal["data", "training", "weights", "generation"]] = "weights"
    config_type: ClassVar[type[WeightDefenseConfig]] = WeightDefenseConfig
    for_adapters: ClassVar[bool] = False

    def __init__(self, config: WeightDefenseConfig | None = None) -> None:
        self.config = config or self.config_type()
        if problems := self.config.problems():
            raise ConfigError([f"{self.name}: {problem}" for problem in problems])

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> WeightDefense:
        """Make the defense from settings by name.

        Raises:
            ConfigError: If it has no such setting, or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls.config_type)]
        unknown = [
            f"{cls.name} has no setting {key}. Its settings: {', '.join(known)}." for key in options if key not in known
        ]
        if unknown:
            raise ConfigError(unknown)
        return cls(cls.config_type(**options))

    @property
    @abstractmethod
    def roles(self) -> tuple[WeightRole, ...]:
        """Return which other models' weights it needs."""

    @property
    def needs_modules(self) -> bool:
        """Tell whether it has to know where the projections are."""
        return False

    def prepare(self, modules: Sequence[ProjectionModule]) -> None:
        """Hear where the projections are, before any tensor."""

    def touches(self, name: str) -> bool:
        """Tell whether it may change the tensor of that name."""
        return True

    @property
    def looks_ahead(self) -> bool:
        """Tell whether it has to see all tensors (`look_ahead`) before it can change the first."""
        return False

    def look_ahead(self, tensors: Iterable[tuple[str, RoleReader]]) -> None:
        """See all tensors that it touches: each by its name, and a reader of it by role (`tuned` or one of `roles`)."""

    @abstractmethod
    def patch_tensor(self, name: str, tuned: Float[Tensor, "*shape"], read: RoleReader) -> PatchedTensor:
        """Return the new weights.

        Args:
            name: The tensor's name; of tied weights always the same one.
            tuned: The tuned model's weights; they are left as they are.
            read: Gives the weights of the same name in another model, by role.
        """

    def after_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Change the weights in memory, exactly as `patch_tensor` would in a file.

        Raises:
            ConfigError: If adapters are on the model, or the context has not the weights that are needed.
        """
        if isinstance(model, PeftModel):
            raise ConfigError(f"{self.name}: needs whole weights in memory; got adapters. Merge them first.")
        missing = [role for role in self.roles if role not in context.sources]
        if missing:
            raise ConfigError(f"{self.name}: needs the weights of {' and '.join(missing)}; the context has none")
        if self.needs_modules:
            from securetune.models import map_modules

            self.prepare(map_modules(model))
        touched = [(name, value) for name, value in model.named_parameters() if self.touches(name)]
        if self.looks_ahead:
            self.look_ahead((name, _reader(name, value.detach(), context)) for name, value in touched)
        with torch.no_grad():
            for name, parameter in touched:
                values = parameter.detach()
                parameter.copy_(self.patch_tensor(name, values, _reader(name, values, context)).values)


def _reader(name: str, tuned: Tensor, context: DefenseContext) -> RoleReader:
    sources = context.sources
    return lambda role: tuned if role == "tuned" else sources[role](name)


def working_dtype(tuned: Float[Tensor, "*shape"]) -> torch.dtype:
    """Return the precision to compute in: float32, or float64 for weights that are float64."""
    return torch.float64 if tuned.dtype == torch.float64 else torch.float32


def in_blocks(
    tuned: Float[Tensor, "*shape"],
    others: Sequence[Float[Tensor, "*shape"]],
    combine: Callable[..., Tensor],
) -> Float[Tensor, "*shape"]:
    """Combine tensors element by element, a block at a time, and round to the precision of the first.

    Args:
        tuned: The first one.
        others: Of the same shape, in any precision.
        combine: Called with a flat block of each, in the precision to compute in.
    """
    dtype = working_dtype(tuned)
    patched = torch.empty(tuned.shape, dtype=tuned.dtype, device=tuned.device)
    flat = [values.reshape(-1) for values in (tuned, *others)]
    target = patched.view(-1)
    for begin in range(0, target.numel(), BLOCK_VALUES):
        part = slice(begin, begin + BLOCK_VALUES)
        target[part] = combine(*(values[part].to(tuned.device, dtype) for values in flat)).to(tuned.dtype)
    return patched


def tensor_seed(name: str, seed: int) -> int:
    """Return a seed for the draws of one tensor, which depends on nothing but its name and the user's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")
