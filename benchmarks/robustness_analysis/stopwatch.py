"""Seconds: every method in turn, round by round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustness_analysis.cases import Bench, Run, Work
from robustness_analysis.methods import METHODS, forward_pass
from securetune.models import ProjectionModule, map_modules


class Timing(NamedTuple):
    """What one method took.

    Attributes:
        seconds: For all modules and all seeds. On a CPU of the processor, which leaves out what other programs take; on
            a GPU of the clock.
        found: What it computed in the last round.
        note: How the figure came about, if not by measuring all of it; or why there is none.
    """

    seconds: float | None
    found: Tensor | None = None
    note: str = ""


class Timings(NamedTuple):
    """What everything took.

    Attributes:
        forward_seconds: Of one plain pass over the prompts.
        methods: Name → its timing.
    """

    forward_seconds: float
    methods: dict[str, Timing]


def time_methods(
    bench: Bench, methods: Sequence[str], seeds: int, repeats: int, sweep_repeats: int, passes: int | None
) -> Timings:
    """Time methods in one process.

    Args:
        bench: The model and so on.
        methods: Names.
        seeds: Noise draws a module.
        repeats: Rounds; the median counts.
        sweep_repeats: Rounds in which the sweeps take part, at most `repeats`.
        passes: About how many perturbations a sweep does in a round, at least one a layer; the time for all is
            inferred. None: all of them.
    """
    modules = map_modules(bench.chat.model)
    work = _part_of(modules, list(range(seeds)), bench, passes)
    runs, failed = _prepare(bench, methods)
    forward = forward_pass(bench)
    forward(work)
    forward_seconds = []
    watches = {name: _Watch(bench, run, work, modules, seeds) for name, run in runs.items()}
    for turn in range(repeats):
        forward_seconds.append(_timed(bench, forward, work)[0])
        for name, watch in watches.items():
            if not METHODS[name].sweeps:
                watch.run_once()
            elif turn < sweep_repeats:
                watch.run_part()
    timings = {name: Timing(None, note=reason) for name, reason in failed.items()}
    timings |= {name: watch.timing() for name, watch in watches.items()}
    return Timings(statistics.median(forward_seconds), {name: timings[name] for name in methods})


class _Watch:
    """Takes one method's time, and infers the whole of a sweep from the part of it that was run."""

    def __init__(self, bench: Bench, run: Run, work: Work, modules: Sequence[ProjectionModule], seeds: int) -> None:
        self._bench, self._run, self._work = bench, run, work
        self._without_seeds = work._replace(modules=modules, seeds=[])
        self._perturbations = len(modules) * seeds
        self._done = self._perturbations
        self._found: Tensor | None = None
        self._seconds: list[float] = []
        self._fixed_seconds: list[float] = []

    def run_once(self) -> None:
        """Take the time of all there is to do."""
        taken, self._found = _timed(self._bench, self._run, self._work)
        self._seconds.append(taken)

    def run_part(self) -> None:
        """Take the time of some perturbations, and of what is done once however many there are."""
        self._done = len(self._work.modules) * len(self._work.seeds)
        self.run_once()
        if self._done < self._perturbations:
            self._fixed_seconds.append(_timed(self._bench, self._run, self._without_seeds)[0])

    def timing(self) -> Timing:
        """Return the median, scaled up from the part."""
        median = statistics.median(self._seconds)
        if self._done == self._perturbations:
            return Timing(median, self._found)
        fixed = statistics.median(self._fixed_seconds)
        note = f"inferred from {self._done} of {self._perturbations} perturbations and from what is done once"
        part = max(0.0, median - fixed)  # on a model of no size the clock's noise is larger than the part
        return Timing(fixed + part * self._perturbations / self._done, self._found, note)


def _part_of(modules: Sequence[ProjectionModule], seeds: list[int], bench: Bench, passes: int | None) -> Work:
    """Take as many modules of every layer, so that a sweep that starts at the perturbed layer is not flattered."""
    if passes is None or len(modules) * len(seeds) <= passes:
        return Work(modules, seeds, bench.prompts)
    layers = sorted({module.layer for module in modules})
    by_layer = [[module for module in modules if module.layer == layer] for layer in layers]
    each = min(max(1, passes // len(layers)), len(by_layer[0]))
    chosen = [row[(place * each + index) % len(row)] for place, row in enumerate(by_layer) for index in range(each)]
    return Work(chosen, seeds[:1], bench.prompts)


def _prepare(bench: Bench, methods: Sequence[str]) -> tuple[dict[str, Run], dict[str, str]]:
    """Make every method ready and try it, on a copy of the model if it may change the model."""
    modules = map_modules(bench.chat.model)
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name in methods:
        own = bench
        if METHODS[name].package:
            own = bench._replace(chat=dataclasses.replace(bench.chat, model=copy.deepcopy(bench.chat.model)))
        try:
            run = METHODS[name].prepare(own)
            run(Work([modules[0], modules[-1]], [0], bench.prompts[:2]))  # warms up, also what starts at a layer
        except Exception as error:  # other people's libraries: whatever they raise, the row says it
            if METHODS[name].package is None:
                raise
            failed[name] = f"cannot do this model ({type(error).__name__}: {str(error).strip()[:200]})"
        else:
            runs[name] = run
    return runs, failed


def _timed(bench: Bench, run: Run, work: Work) -> tuple[float, Tensor | None]:
    on_gpu = bench.case.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    found = run(work)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start, found
