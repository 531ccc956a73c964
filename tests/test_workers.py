"""The pool of worker processes: jobs in turn, isolated failures, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from securetune.errors import DataError, RunError
from securetune.workers import Ended, Progressed, WorkerPool


def succeed(path, progress):
    progress("counting", 1, 2)
    print("said by a job")
    Path(path).write_text(str(os.getpid()))


def fail_with_sentences(progress):
    raise DataError(["row 1 is bad", "row 2 is bad"])


def fail_with_something_unpicklable(progress):
    class LocalError(Exception):
        pass

    raise LocalError("only here")


def die(progress):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(path, progress):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def finish(pool, *job):
    """Start one job and return everything that the pool tells until it ends."""
    pool.start(*job)
    events = []
    while not events or not isinstance(events[-1], Ended):
        events += pool.events()
    return events


def is_running(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=30.0):
    """Return whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with WorkerPool(1, threads=None, logs=tmp_path_factory.mktemp("logs")) as pool:
        yield pool


def test_a_worker_does_job_after_job(pool, tmp_path):
    """A worker stays alive, because its imports are dear; it tells how far it is, and then that it is done."""
    first = finish(pool, "first", succeed, str(tmp_path / "first"))
    second = finish(pool, "second", succeed, str(tmp_path / "second"))
    assert first == [Progressed("first", "counting", 1, 2), Ended("first", None)]
    assert second[-1] == Ended("second", None)
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text() != str(os.getpid())


def test_an_error_comes_back_whole(pool):
    """An error made on purpose arrives with its class and its sentences, and with the worker's traceback as a note."""
    error = finish(pool, "bad", fail_with_sentences)[-1].error
    assert isinstance(error, DataError)
    assert error.problems == ["row 1 is bad", "row 2 is bad"]
    assert "fail_with_sentences" in error.__notes__[0]


def test_an_error_that_cannot_travel(pool):
    """An error that does not survive pickling is told in words."""
    error = finish(pool, "odd", fail_with_something_unpicklable)[-1].error
    assert isinstance(error, RuntimeError)
    assert "LocalError: only here" in str(error)


def test_a_dead_worker_costs_only_its_job(pool, tmp_path):
    """A worker that is killed ends its job with an error that says how, and the next job gets a new worker."""
    error = finish(pool, "big", die)[-1].error
    assert isinstance(error, RunError)
    assert "big: its worker process was killed by signal 9 (out of memory?)" in str(error)
    assert finish(pool, "next", succeed, str(tmp_path / "next"))[-1] == Ended("next", None)


def test_output_goes_to_a_log(pool, tmp_path):
    """What a job prints is kept in a file, and does not reach the terminal."""
    finish(pool, "talker", succeed, str(tmp_path / "talker"))
    logs = list(pool._logs.glob("worker-*.log"))
    assert any("said by a job" in log.read_text() for log in logs)


def test_no_worker_is_idle_during_a_job(tmp_path):
    """A pool takes as many jobs as it has workers, and its end ends the jobs under way."""
    with WorkerPool(1, threads=None, logs=tmp_path / "logs") as pool:
        pool.start("long", sleep, str(tmp_path / "pid"))
        assert (pool.has_idle_worker, pool.running) == (False, ["long"])
        with pytest.raises(RuntimeError, match="no idle worker for second"):
            pool.start("second", sleep, str(tmp_path / "pid"))
        assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        process_id = int((tmp_path / "pid").read_text())
    assert not is_running(process_id)


def test_threads_are_set_before_torch(tmp_path):
    """Each worker has the number of threads that the run planned, so that processes do not fight over cores."""
    with WorkerPool(1, threads=1, logs=tmp_path / "logs") as pool:
        finish(pool, "threads", write_threads, str(tmp_path / "threads"))
    assert (tmp_path / "threads").read_text() == "1 1 false"
    assert "TOKENIZERS_PARALLELISM" not in os.environ or os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    """Workers see one GPU each, in turn, whatever this process sees; without GPUs to give out they see what it sees."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    for gpus, seen in ((("4", "7"), {"4", "7"}), ((), {"4,7"})):
        with WorkerPool(2, threads=1, logs=tmp_path / "logs", gpus=gpus) as pool:
            for name in ("a", "b"):
                pool.start(name, write_gpu, str(tmp_path / name))
            while pool.running:
                list(pool.events())
        assert {(tmp_path / name).read_text() for name in ("a", "b")} == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def write_gpu(path, progress):
    Path(path).write_text(os.environ["CUDA_VISIBLE_DEVICES"])


def write_threads(path, progress):
    import torch

    Path(path).write_text(
        f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']} {os.environ['TOKENIZERS_PARALLELISM']}"
    )


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_workers import sleep
from securetune.workers import WorkerPool
if __name__ == "__main__":
    with WorkerPool(1, threads=None, logs=Path({folder!r})) as pool:
        pool.start("long", sleep, {pid!r})
        list(pool.events())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, how):
    """However the parent ends, its workers end too: an orphan would write into a folder that a new run works in."""
    script = tmp_path / "parent.py"
    pid = tmp_path / "pid"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "logs"), pid=str(pid)))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: pid.exists() and pid.read_text())
        worker = int(pid.read_text())
        parent.send_signal(how)
        parent.wait(30)
        assert wait_for(lambda: not is_running(worker), seconds=10)
    finally:
        parent.kill()
        parent.wait()
