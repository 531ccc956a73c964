"""Sparing the top layer what nobody reads there.

Every readout is taken at the last token of a prompt, and what follows the attention of the top layer works on each
token alone. So its O, Gate, Up and Down need run on one token of each prompt only. That is the same number for less
work: on 12 layers some 6 % of a pass, forward and backward alike. (Q, too, matters at the last token only, but some
architectures convolve it with its neighbours. Experts are left alone: which token goes to which is decided before.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from securetune.features.hidden_states import at_last_token
from securetune.models import ProjectionModule

_TYPES_AFTER_ATTENTION = ("O", "Gate", "Up", "Down")


@contextmanager
def last_tokens_only(
    model: nn.Module, modules: Sequence[ProjectionModule], last: Int[Tensor, " batch"]
) -> Iterator[None]:
    """Run the top layer's O, Gate, Up and Down on the last tokens while the context is open; elsewhere they give 0.

    A hook that was put on one of them before sees one token a prompt, one that is put there later sees all.

    Args:
        model: The model.
        modules: All of its projections.
        last: Index of the last token of each prompt in the batches that run meanwhile.
    """
    top = max(module.layer for module in modules)
    after = [m for m in modules if m.layer == top and m.type in _TYPES_AFTER_ATTENTION and not m.of_experts]
    maps = {module.path: module.holder_in(model) for module in after}  # Gate and Up may be one
    handles = [handle for linear in maps.values() for handle in _restrict(linear, last)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _LastTokens:
    """The two hooks of one map; a class, because type checks that decorate functions would do so for every batch."""

    def __init__(self, last: Int[Tensor, " batch"]) -> None:
        self._last = last
        self._width = 0
        self._is_flat = False

    def pick(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Let only the last tokens in."""
        self._is_flat = inputs[0].ndim == 2  # OPT's MLP gets the tokens of all prompts in one row
        states = inputs[0].unflatten(0, (len(self._last), -1)) if self._is_flat else inputs[0]
        self._width = states.shape[1]
        picked = at_last_token(states, self._last)
        return (picked if self._is_flat else picked.unsqueeze(1),)

    def put_back(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Put what came out where the last tokens are."""
        rows = torch.arange(len(self._last), device=self._last.device)
        states = output if self._is_flat else output.squeeze(1)
        whole = output.new_zeros(len(self._last), self._width, output.shape[-1]).index_put((rows, self._last), states)
        return whole.flatten(0, 1) if self._is_flat else whole


def _restrict(linear: nn.Module, last: Int[Tensor, " batch"]) -> Iterator[RemovableHandle]:
    hooks = _LastTokens(last)
    yield linear.register_forward_pre_hook(hooks.pick)
    yield linear.register_forward_hook(hooks.put_back)
