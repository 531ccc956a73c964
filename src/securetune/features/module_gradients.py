"""Seeing each projection's inputs and the gradients of its outputs as the backward pass makes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from securetune.features.experts import ExpertCall, watch_experts
from securetune.models import ProjectionModule

Measure = Callable[[ProjectionModule, int | None, Tensor, Tensor], Tensor]
"""Module, number of the expert or None, its inputs and its outputs' gradients, both (batch, seq, …) → one number a
prompt, in float64. What it gives for the experts of a module adds up."""


class ModuleGradients:
    """Measures every module while a backward pass runs.

    Args:
        modules: All projections of the model.
        measure: What to measure.

    Attributes:
        starts: The first outputs of projections, which nothing differentiable precedes: where the graph starts.
        found: Module name → one number a prompt.
    """

    def __init__(self, modules: Sequence[ProjectionModule], measure: Measure) -> None:
        self.starts: list[Tensor] = []
        self.found: dict[str, Float[Tensor, " batch"]] = {}
        self._measure = measure
        self._by_path: dict[str, list[ProjectionModule]] = defaultdict(list)
        for module in modules:
            self._by_path[module.path].append(module)

    @contextmanager
    def watched(self, model: nn.Module, batch_size: int) -> Iterator[None]:
        """See what passes while the context is open.

        Args:
            model: The model.
            batch_size: Prompts of the batch that will pass.
        """
        with ExitStack() as stack:
            experts: dict[str, nn.Module] = {}  # both parameters of a layer's experts have the same holder
            for path, modules in self._by_path.items():
                if modules[0].of_experts:
                    experts[path.rpartition(".")[0]] = modules[0].holder_in(model)
                else:
                    stack.callback(self._watch_linear(model, modules, batch_size).remove)
            for path, holder in experts.items():
                stack.enter_context(watch_experts(holder, batch_size, self._expert_watcher(path)))
            yield

    def stacked(self, modules: Sequence[ProjectionModule]) -> Float[Tensor, "module batch"]:
        """Return what was found, in the order of the modules; zero where no prompt's token reached any expert."""
        empty = torch.zeros_like(next(iter(self.found.values())))
        return torch.stack([self.found.get(module.name, empty) for module in modules])

    def _watch_linear(
        self, model: nn.Module, modules: Sequence[ProjectionModule], batch_size: int
    ) -> torch.utils.hooks.RemovableHandle:
        see = partial(self._see_linear, modules, partial(_by_prompt, batch_size))
        return modules[0].holder_in(model).register_forward_hook(see)

    def _see_linear(
        self,
        modules: Sequence[ProjectionModule],
        by_prompt: Callable[[Tensor], Tensor],
        _: nn.Module,
        inputs: tuple[Tensor, ...],
        output: Tensor,
    ) -> None:
        self._expect_gradient(modules, None, [inputs[0].detach()], output, by_prompt)

    def _expert_watcher(self, holder_path: str) -> Callable[[ExpertCall], None]:
        return partial(self._see_expert, holder_path)

    def _see_expert(self, holder_path: str, call: ExpertCall) -> None:
        modules = self._by_path[f"{holder_path}.{call.parameter}"]
        self._expect_gradient(modules, call.expert, [call.inputs.detach()], call.output, call.by_prompt)

    def _expect_gradient(
        self,
        modules: Sequence[ProjectionModule],
        expert: int | None,
        inputs: list[Tensor],
        output: Tensor,
        by_prompt: Callable[[Tensor], Tensor],
    ) -> None:
        if not output.requires_grad:
            self.starts.append(output.requires_grad_())
        output.register_hook(partial(self._note, modules, expert, inputs, by_prompt))

    @torch.no_grad()
    def _note(
        self,
        modules: Sequence[ProjectionModule],
        expert: int | None,
        inputs: list[Tensor],
        by_prompt: Callable[[Tensor], Tensor],
        gradient: Tensor,
    ) -> None:
        # Taken out: a hook would hold its input until the whole graph goes, and not let it go with its layer.
        a, g = by_prompt(inputs.pop()), by_prompt(gradient)
        for module in modules:
            value = self._measure(module, expert, a, module.part.of_output(g))
            known = self.found.get(module.name)
            self.found[module.name] = value if known is None else known + value


def _by_prompt(batch_size: int, values: Tensor) -> Tensor:
    """Take apart what OPT's MLP gets: the tokens of all prompts in one row."""
    return values.unflatten(0, (batch_size, -1)) if values.ndim == 2 else values
