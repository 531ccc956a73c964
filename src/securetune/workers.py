"""Worker processes that stay alive from job to job, because importing torch and TRL takes as long as a small job.

Unlike `concurrent.futures`, a worker that dies (killed for its memory, say) costs only the job it was doing, and the
whole pool can be ended at once. The parent's interrupts (Ctrl-C) do not reach the workers: the parent ends them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from securetune.errors import RunError

_CONTEXT = multiprocessing.get_context("spawn")  # a forked child of a process that has used torch may hang
_SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class Progressed:
    """A job tells how far it is."""

    job: str
    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """A job is over; `error` is None if it went well, and carries the worker's traceback as a note otherwise."""

    job: str
    error: BaseException | None


Event = Progressed | Ended


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    log: Path
    job: str | None = None


class WorkerPool:
    """A fixed number of worker processes, as a context manager that ends them all.

    Args:
        count: Number of processes (≥ 1).
        threads: Threads that torch and the BLAS libraries use in each, or None for their own default.
        logs: Folder for what the workers print; a terminal with two training runs talking at once helps nobody.
        gpus: GPUs that are given out in turn, one a worker, as `CUDA_VISIBLE_DEVICES` names them; empty: each worker
            sees all that this process sees.

    Example:
        >>> with WorkerPool(1, threads=1, logs=Path("logs")) as pool:  # doctest: +SKIP
        ...     pool.start("a job", run_one_cell, arguments)
        ...     for event in pool.events():
        ...         print(event)
    """

    def __init__(self, count: int, threads: int | None, logs: Path, gpus: Sequence[str] = ()) -> None:
        self._threads = threads
        self._gpus = gpus
        self._logs = logs
        self._workers = [self._spawn(number) for number in range(count)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @property
    def has_idle_worker(self) -> bool:
        """Whether `start` can be called."""
        return any(worker.job is None for worker in self._workers)

    @property
    def running(self) -> list[str]:
        """Names of the jobs under way."""
        return [worker.job for worker in self._workers if worker.job is not None]

    def start(self, job: str, function: Callable[..., None], *arguments: Any) -> None:
        """Let an idle worker call `function(*arguments, progress)`; it must be importable, its arguments picklable.

        Raises:
            RuntimeError: If no worker is idle.
        """
        for number, worker in enumerate(self._workers):
            if worker.job is None:
                if not worker.process.is_alive():
                    worker = self._workers[number] = self._spawn(number)
                worker.job = job
                worker.connection.send((function, arguments))
                return
        raise RuntimeError(f"no idle worker for {job}")

    def events(self) -> Iterator[Event]:
        """Wait until something happens, and yield what did."""
        busy = [worker for worker in self._workers if worker.job is not None]
        wait([worker.connection for worker in busy])
        for worker in busy:
            yield from self._events_of(worker)

    def end(self) -> None:
        """End every worker, in the middle of its job if need be."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_SECONDS_TO_END)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()

    def _events_of(self, worker: _Worker) -> Iterator[Event]:
        job = worker.job
        assert job is not None
        try:
            while worker.job is not None and worker.connection.poll():
                message = worker.connection.recv()
                if isinstance(message, tuple):
                    yield Progressed(job, *message)
                else:
                    worker.job = None
                    yield Ended(job, message)
        except (EOFError, ConnectionResetError):
            worker.job = None
            worker.process.join()
            yield Ended(job, RunError(_epitaph(job, worker)))

    def _spawn(self, number: int) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"worker-{number}.log"
        process = _CONTEXT.Process(target=_serve, args=(theirs, self._threads, str(log)), daemon=True)
        gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
        with _conditions_of_a_worker(self._threads, gpu):
            process.start()
        theirs.close()  # so that a dead worker reads as the end of the file here
        return _Worker(process, ours, log)


def _epitaph(job: str, worker: _Worker) -> str:
    code = worker.process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"{job}: its worker process {how}{memory}; what it printed is in {worker.log}"


@contextmanager
def _conditions_of_a_worker(threads: int | None, gpu: str | None) -> Iterator[None]:
    """Set what a child inherits: Ctrl-C ignored from its first moment, the number of BLAS threads, and its GPU."""
    before = dict(os.environ)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, threads: int | None, log: str) -> None:
    """Body of a worker process: do jobs until the parent is gone."""
    _print_to(log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        import torch  # the parent may be a command that never needs it

        torch.set_num_threads(threads)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(function, arguments, lambda *message: connection.send(message)))
        gc.collect()  # a job's model must not take up memory beside the next one's


def _outcome(
    function: Callable[..., None], arguments: tuple[Any, ...], progress: Callable[..., None]
) -> BaseException | None:
    try:
        function(*arguments, progress)
    except Exception as error:  # whatever went wrong in a job, the run must hear of it
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        return _portable(error, text)
    return None


def _portable(error: Exception, text: str) -> Exception:
    """Return the error with its traceback as a note, or a stand-in if it does not survive pickling."""
    error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own __init__ or __reduce__ may fail in any way
        return RuntimeError(f"{type(error).__name__}: {error}\n{text}")
    return error


def _print_to(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _end_with_parent() -> None:
    """End at once when the parent dies, so that a run started again never shares its folder with an orphan."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
