"""Which part of a parameter a projection is: all of it, or a slice of a fused or stacked one.

Phi-3 keeps Q, K and V in one matrix, one below the other; GPT-NeoX does so head by head; GPT-2 stores its matrices
transposed; mixtures of experts stack the matrices of all experts, and gpt-oss interleaves Gate and Up row by row. One
description covers them all: the output axis is a number of equal periods, and a projection has the same rows in each.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class WeightPart:
    """The rows of a parameter that belong to one projection.

    Attributes:
        transposed: Whether the parameter is stored (in, out) instead of (out, in).
        period: Rows after which the pattern of projections repeats; None: the whole parameter is one projection.
        start: The projection's first row in a period.
        size: Its rows in a period.
    """

    transposed: bool = False
    period: int | None = None
    start: int = 0
    size: int = 0

    def of_weight(self, weight: Float[Tensor, "*stored"]) -> Float[Tensor, "*part"]:
        """Return the projection's own weights as a view: what is written to it is written to the parameter.

        Its last axis is the input; those before it are experts, if there are any, then periods, if there are several,
        then output rows.
        """
        oriented = weight.mT if self.transposed else weight
        if self.period is None:
            return oriented
        count = oriented.shape[-2] // self.period
        rows = oriented.unflatten(-2, (count, self.period)).narrow(-2, self.start, self.size)
        return rows.squeeze(-3) if count == 1 else rows

    def of_output(self, output: Float[Tensor, "*token out"]) -> Float[Tensor, "*token part"]:
        """Return the projection's own outputs, in the order of the rows; a view where that is possible."""
        return output if self.period is None else self._rows_of(output).flatten(-2)

    def replace_output(
        self, output: Float[Tensor, "*token out"], replacement: Float[Tensor, "*token part"]
    ) -> Float[Tensor, "*token out"]:
        """Return the outputs with the projection's own ones exchanged."""
        if self.period is None:
            return replacement
        changed = output.clone()
        rows = self._rows_of(changed)
        rows.copy_(replacement.unflatten(-1, rows.shape[-2:]))
        return changed

    def _rows_of(self, output: Tensor) -> Tensor:
        assert self.period is not None
        return output.unflatten(-1, (-1, self.period)).narrow(-1, self.start, self.size)


WHOLE = WeightPart()
