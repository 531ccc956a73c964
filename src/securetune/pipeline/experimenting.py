"""An experiment: one run over all its points, then the comparison of the methods."""

from __future__ import annotations

from pathlib import Path

from securetune.artifacts import Experiment, write_json, write_text
from securetune.config import ExperimentConfig
from securetune.errors import RunError
from securetune.pipeline.folder import RunFolder
from securetune.pipeline.running import run
from securetune.progress import RunObserver
from securetune.reporting import FRONTIER, experiment_page, frontier_svg, summarize_experiment

EXPERIMENT = "experiment.json"
PAGE = "experiment.md"


def experiment(config: ExperimentConfig, out: Path, observer: RunObserver | None = None) -> Experiment:
    """Do every cell (method, setting, seed) that is not complete yet, and compare what is.

    Analysis, search and the start model's evaluation are done once; methods that differ in what follows the training
    share it. Cells are isolated: those that fail are told of at the end, and tried again by the next call.

    Args:
        config: As `securetune.config.load_experiment_config` reads it.
        out: The folder: new, empty, or that of this experiment.
        observer: Is told of every stage.

    Raises:
        InputError: For every mistake that can be found before the work begins.
        RunError: If cells failed; what is complete has been compared and written.
    """
    failure: RunError | None = None
    try:
        run(config.run, out, observer)
    except RunError as error:
        if not RunFolder(out).comparison.exists():
            raise
        failure = error
    found = summarize_experiment(config, out)
    write_experiment(found, out)
    if failure is not None:
        raise failure
    return found


def write_experiment(found: Experiment, out: Path) -> None:
    """Write the result for programs, the page and its figure."""
    figure = frontier_svg(found)
    if figure is not None:
        write_text(out / FRONTIER, figure)
    write_text(out / PAGE, experiment_page(found))
    write_json(out / EXPERIMENT, found)
