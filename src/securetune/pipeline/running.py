"""A whole run: checks first, then every job that is not complete yet on a pool of workers, then the report."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from securetune.artifacts import (
    RobustModules,
    RobustnessReport,
    RunRecord,
    StageRecord,
    read_artifact,
    write_json,
    write_text,
)
from securetune.config import RunConfig
from securetune.errors import RunError, SecuretuneError
from securetune.pipeline.checks import check_run
from securetune.pipeline.folder import RunFolder, locked, open_record
from securetune.pipeline.jobs import REPORT, Job, do, list_jobs
from securetune.pipeline.resources import plan_resources
from securetune.pipeline.sharing import take_over
from securetune.progress import RunObserver
from securetune.reporting import heatmap_svg, write_report
from securetune.workers import Ended, Progressed, WorkerPool


def run(config: RunConfig, out: Path, observer: RunObserver | None = None, like: Path | None = None) -> Path:
    """Analyze, search, train, evaluate and report, as one configuration says.

    A run that was interrupted or killed goes on when it is called again with the same configuration and folder, and
    ends with the same result. Workers are processes of their own: a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        config: The resolved configuration; see `securetune.config.load_run_config`.
        out: The run folder; it must be new, empty, or hold this same run.
        observer: Is told of every stage.
        like: Folder of another run, from which the analysis, the searches and the start model's answers are taken over
            where they would come out the same; None: all is done here.

    Returns:
        The path of `report.html`.

    Raises:
        InputError: For every mistake that can be found before the work begins, all together.
        StartModelError: If the start model does not refuse harmful requests.
        RunError: If training or evaluation of some method and seed failed; the others are complete, and reported.

    Example:
        >>> from securetune import config, run
        >>> run(config.load_run_config(Path("recipe.yaml")), Path("runs/first"))  # doctest: +SKIP
        PosixPath('runs/first/report.html')
    """
    folder = RunFolder(out)
    resolved = config.model_copy(update={"evaluation": check_run(config, folder)})
    with locked(folder):
        jobs = list_jobs(resolved, folder)
        record = open_record(folder, config, [*(job.name for job in jobs), REPORT])
        if like is not None:
            take_over(folder, RunFolder(like), config, record, jobs)
        _Run(resolved, folder, record, observer or RunObserver()).do_all(jobs)
    return folder.report


class _Run:
    """The state of a run under way."""

    def __init__(self, config: RunConfig, folder: RunFolder, record: RunRecord, observer: RunObserver) -> None:
        self._config = config
        self._folder = folder
        self._record = record
        self._observer = observer
        self._began_at: dict[str, float] = {}
        self._counted_until = time.monotonic()

    def do_all(self, jobs: list[Job]) -> None:
        waiting = [job for job in jobs if not self._is_complete(job)]
        for job in waiting:
            self._stage(job.name).state = "waiting"  # what needs it must wait too, even if its result was removed later
        self._observer.run_began(len(jobs) - len(waiting), len(jobs))
        try:
            if waiting:
                self._do_jobs(waiting)
            self._write_report()
        except KeyboardInterrupt:
            self._stop("interrupted")
            raise
        except BaseException:
            self._stop("failed")
            raise
        failed = [job for job in jobs if self._stage(job.name).state == "failed"]
        self._save("failed" if failed else "complete")
        if failed:
            raise RunError(_failure_sentences(failed, self._record, len(jobs)))

    def _do_jobs(self, waiting: list[Job]) -> None:
        workers, threads, gpus = plan_resources(self._config, len(waiting))
        isolated = {job.name for job in waiting if job.is_isolated}
        with WorkerPool(workers, threads, self._folder.logs, gpus) as pool:
            while waiting or pool.running:
                for job in [job for job in waiting if self._is_ready(job)]:
                    if pool.has_idle_worker:
                        waiting.remove(job)
                        pool.start(job.name, do, job, self._config, self._folder)
                        self._began(job.name)
                for job in [job for job in waiting if self._needs_failed(job)]:
                    waiting.remove(job)
                    self._began(job.name)
                    lost = next(name for name in job.needs if self._stage(name).state == "failed")
                    self._ended(Ended(job.name, RunError(f"it needs {lost}, which failed")), is_isolated=True)
                if not pool.running:
                    continue
                for event in pool.events():
                    if isinstance(event, Progressed):
                        self._observer.stage_progressed(event.job, event.what, event.done, event.total)
                    else:
                        self._ended(event, is_isolated=event.job in isolated)

    def _is_ready(self, job: Job) -> bool:
        return all(self._stage(name).state == "complete" for name in job.needs)

    def _needs_failed(self, job: Job) -> bool:
        """Ask whether a cell waits for data or a training that failed; everything else that fails ends the run."""
        return any(self._stage(name).state == "failed" for name in job.needs)

    def _is_complete(self, job: Job) -> bool:
        """Ask both: a job may have died between its last file and the record, and a file may have been removed."""
        return self._stage(job.name).state == "complete" and job.marker.exists()

    def _began(self, name: str) -> None:
        self._began_at[name] = time.monotonic()
        self._stage(name).state = "running"
        self._save("running")
        self._observer.stage_began(name)

    def _ended(self, event: Ended, is_isolated: bool) -> None:
        stage = self._stage(event.job)
        seconds = time.monotonic() - self._began_at.pop(event.job)
        stage.seconds = round(stage.seconds + seconds, 3)
        stage.state = "failed" if event.error else "complete"
        stage.error = _one_line(event.error) if event.error else None
        self._save("running")
        self._observer.stage_ended(event.job, seconds, stage.error)
        if event.error is not None and not is_isolated:
            raise event.error

    def _write_report(self) -> None:
        self._began(REPORT)
        report = read_artifact(self._folder.robustness, RobustnessReport)
        chosen = read_artifact(self._folder.manifest("searched"), RobustModules).modules
        write_text(self._folder.heatmap, heatmap_svg(report, [module.name for module in chosen]))
        write_report(self._folder.path)
        self._ended(Ended(REPORT, None), is_isolated=False)

    def _stage(self, name: str) -> StageRecord:
        return self._record.stages[name]

    def _stop(self, status: str) -> None:
        for name, began_at in self._began_at.items():
            stage = self._stage(name)
            stage.state, stage.seconds = "waiting", round(stage.seconds + time.monotonic() - began_at, 3)
        self._save(status)

    def _save(self, status: str) -> None:
        now = time.monotonic()
        self._record.seconds = round(self._record.seconds + now - self._counted_until, 3)
        self._counted_until = now
        self._record.status = status  # type: ignore[assignment]
        write_json(self._folder.record, self._record)


def _one_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, SecuretuneError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _failure_sentences(failed: Iterable[Job], record: RunRecord, total: int) -> str:
    sentences = [f"{job.name} failed: {record.stages[job.name].error}" for job in failed]
    summary = (
        f"{len(sentences)} of {total} jobs failed; the others are complete. Start the run again to try them again."
    )
    return "\n".join([*sentences, summary])
