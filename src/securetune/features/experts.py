"""Seeing what passes through each expert of a mixture.

Experts are not submodules: the matrices of all experts are stacked in one parameter, and one function multiplies with
all of them. While a layer's experts are watched, that function is replaced by one that takes the experts one after
another, as the models' own plain implementation does. It gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ExpertCall(NamedTuple):
    """One expert's turn at one of its two matrices.

    Attributes:
        parameter: `gate_up_proj` or `down_proj`.
        expert: Number of the expert.
        inputs: What it was given: the tokens that were sent to it.
        output: What the matrix made of them.
        rows: The prompt that each token is of.
        places: Its number among the tokens of that prompt that were sent here.
        batch_size: Prompts.
    """

    parameter: str
    expert: int
    inputs: Float[Tensor, "token in"]
    output: Float[Tensor, "token out"]
    rows: Int[Tensor, " token"]
    places: Int[Tensor, " token"]
    batch_size: int

    def by_prompt(self, values: Float[Tensor, "token size"]) -> Float[Tensor, "batch seq size"]:
        """Give each prompt its tokens back, and zeros to those that have fewer than others."""
        padded = values.new_zeros(self.batch_size, int(self.places.max()) + 1, values.shape[-1])
        padded[self.rows, self.places] = values
        return padded


@contextmanager
def watch_experts(experts: nn.Module, batch_size: int, see: Callable[[ExpertCall], None]) -> Iterator[None]:
    """Show every expert's calls while the context is open.

    Args:
        experts: All experts of a layer, as transformers 5 holds them: `gate_up_proj` (expert, 2 × intermediate, hidden)
            and `down_proj` (expert, hidden, intermediate), or both transposed.
        batch_size: Prompts of the batch that passes.
        see: Called for each expert that gets a token, once for each of its matrices.
    """
    holder: Any = experts

    def forward(
        hidden_states: Float[Tensor, "token hidden"],
        top_k_index: Int[Tensor, "token choice"],
        top_k_weights: Float[Tensor, "token choice"],
    ) -> Float[Tensor, "token hidden"]:
        result = torch.zeros_like(hidden_states)
        tokens_a_prompt = len(hidden_states) // batch_size
        for expert in range(holder.num_experts):
            tokens, choices = torch.where(top_k_index == expert)  # in the order of the tokens, so of the prompts
            if not len(tokens):
                continue
            rows = tokens // tokens_a_prompt
            place = (rows, _places(rows, batch_size), batch_size)
            inputs = hidden_states[tokens]
            gate_up = _multiply(holder, "gate_up_proj", expert, inputs)
            see(ExpertCall("gate_up_proj", expert, inputs, gate_up, *place))
            inner = holder._apply_gate(gate_up)
            output = _multiply(holder, "down_proj", expert, inner)
            see(ExpertCall("down_proj", expert, inner, output, *place))
            weighted = output * top_k_weights[tokens, choices, None]
            result = result.index_add(0, tokens, weighted.to(result.dtype))
        return result

    holder.forward = forward  # on this object; the class keeps its own
    try:
        yield
    finally:
        del holder.forward


def _multiply(experts: Any, name: str, expert: int, inputs: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return nn.functional.linear(inputs, weight.mT if experts.is_transposed else weight, bias)


def _places(rows: Int[Tensor, " token"], batch_size: int) -> Int[Tensor, " token"]:
    """Number the tokens of each prompt from 0."""
    counts = torch.bincount(rows, minlength=batch_size)
    return torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
