"""An experiment: for each data set one run over all its points, then the comparison of the methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from securetune.artifacts import Experiment, write_json, write_text
from securetune.config import ONLY, ExperimentConfig
from securetune.errors import InputError, ProblemList, RunError
from securetune.pipeline.checks import check_run
from securetune.pipeline.folder import RunFolder
from securetune.pipeline.running import run
from securetune.progress import RunObserver
from securetune.reporting import FRONTIER, data_sets_page, experiment_page, frontier_svg, summarize_experiment

EXPERIMENT = "experiment.json"
PAGE = "experiment.md"


def experiments(
    configs: Mapping[str, ExperimentConfig], out: Path, observer: RunObserver | None = None
) -> dict[str, Experiment]:
    """Do an experiment on each of its data sets, one after the other, each in a folder of its name.

    The analysis, the searches and the start model's answers are taken over from the first, where they would come out
    the same. All data sets are checked before the first is begun; a data set with failed cells does not keep the others
    from being done.

    Args:
        configs: Data set → its experiment, as `securetune.config.load_experiment_configs` reads them.
        out: The folder. With one data set without a name it is the experiment's own.
        observer: Is told of every stage.

    Raises:
        InputError: For every mistake that can be found before the work begins, in any data set.
        RunError: If cells failed; what is complete has been compared and written.
    """
    if set(configs) == {ONLY}:
        return {ONLY: experiment(configs[ONLY], out, observer)}
    _check(configs, out)
    found: dict[str, Experiment] = {}
    failures: list[str] = []
    first = out / next(iter(configs))
    for name, config in configs.items():
        try:
            found[name] = experiment(config, out / name, observer, like=None if out / name == first else first)
        except RunError as error:
            failures.append(f"{name}: {error}")
            if RunFolder(out / name).comparison.exists():
                found[name] = summarize_experiment(config, out / name)
        write_text(out / PAGE, data_sets_page(found))
    if failures:
        raise RunError("\n".join(failures))
    return found


def _check(configs: Mapping[str, ExperimentConfig], out: Path) -> None:
    """Find the mistakes in all data sets before the first of them costs hours."""
    problems = ProblemList()
    for name, config in configs.items():
        try:
            check_run(config.run, RunFolder(out / name))
        except InputError as error:
            problems.found += [f"data_sets.{name}: {problem}" for problem in error.problems]
    problems.raise_if_any(InputError)


def experiment(
    config: ExperimentConfig, out: Path, observer: RunObserver | None = None, like: Path | None = None
) -> Experiment:
    """Do every cell (method, setting, seed) that is not complete yet, and compare what is.

    Analysis, search and the start model's evaluation are done once; methods that differ in what follows the training
    share it. Cells are isolated: those that fail are told of at the end, and tried again by the next call.

    Args:
        config: As `securetune.config.load_experiment_config` reads it.
        out: The folder: new, empty, or that of this experiment.
        observer: Is told of every stage.
        like: As `run` takes it.

    Raises:
        InputError: For every mistake that can be found before the work begins.
        RunError: If cells failed; what is complete has been compared and written.
    """
    failure: RunError | None = None
    try:
        run(config.run, out, observer, like)
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
