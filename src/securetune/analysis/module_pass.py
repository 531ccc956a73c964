"""Going through the modules of a model, layer by layer, and measuring something of each.

All passes of the analysis (calibration, sweep, small noise, classifiers fitted anew) go through here, so that each of
them tells its progress, goes on after an interruption, and is shared among processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from securetune.analysis.partial_results import PartialResults, Values
from securetune.features.replay import StateSource
from securetune.models import ProjectionModule
from securetune.processes import Processes
from securetune.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Execution:
    """How passes are carried out; nothing here changes a number.

    Attributes:
        progress: Told at the beginning and after each module. The pieces are layers run, not modules: a module of the
            first layer costs all the layers above it too, one of the last only that layer, and time left is told from
            the pieces.
        partial_results: Folder for what is finished, from which a pass that was interrupted goes on; None keeps
            nothing. `remove_partial_results` removes it once the results are safe.
        processes: Each measures its share of the modules on its own copy of the model, and all get the results. With
            as many threads in each as one process alone has, these are the same bit for bit.
    """

    progress: ProgressCallback = silent
    partial_results: Path | None = None
    processes: Processes = field(default_factory=Processes)


def measure_modules(
    modules: Sequence[ProjectionModule],
    layer_count: int,
    source: StateSource,
    measure: Callable[[ProjectionModule], Values],
    what: str,
    key: str | None,
    execution: Execution,
) -> dict[str, Shaped[Tensor, "module ..."]]:
    """Measure each module, in the order of the layers, except those that are finished already.

    Args:
        modules: Each of another name.
        layer_count: Layers of the model.
        source: Is advanced to each module's layer before it is measured.
        measure: Gives the same values for a module whatever was measured before.
        what: What to call this in the progress.
        key: Hash of what the values depend on, of `key_of`.
        execution: How to carry it out.

    Returns:
        Name of the value → the values of all modules, in the order given.
    """
    ordered = sorted(modules, key=lambda module: module.layer)
    # Shares depend on nothing that the processes may see differently, such as what is in the files by now.
    share = execution.processes.share(ordered)
    cost = {module.name: layer_count - module.layer for module in share}
    with PartialResults(execution.partial_results, key, execution.processes.rank) as results:
        missing = [module for module in share if module.name not in results]
        done = sum(cost.values()) - sum(cost[module.name] for module in missing)
        execution.progress(f"{what} (layers run)", done, sum(cost.values()))
        for module in missing:
            source.advance_to(module.layer)
            results.add(module.name, measure(module))
            done += cost[module.name]
            execution.progress(f"{what} (layers run)", done, sum(cost.values()))
        own = {module.name: results[module.name] for module in share}
    found = {name: values for part in execution.processes.gather(own) for name, values in part.items()}
    rows = [found[module.name] for module in modules]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
