"""Peak memory: each method once, in a process of its own, above what the loaded model takes.

On a CPU every tensor is made to be a mapping of its own, so that what counts is what a method holds, as on a GPU, and
not what the C library keeps of what was freed.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from robustness_analysis.cases import Case, Work, open_case
from robustness_analysis.methods import METHODS
from securetune.models import map_modules

MIB = 1024 * 1024
SWEPT_MODULES = 2
"""A sweep's peak is reached within one perturbation; the second shows what is left of the first."""

_MAPPING_THRESHOLD = -3
"""The C library's name for the size from which memory is mapped (M_MMAP_THRESHOLD)."""

_PRELOADED = ["securetune.analysis", "transformers.models.llama.modeling_llama"]


def peak_mib(case: Case, method: str) -> float | None:
    """Run a method on all prompts in a fresh process, a sweep on its first modules; None if it fails.

    On a CPU it is the peak of the resident set; on a GPU that of torch's allocations.
    """
    context = multiprocessing.get_context("spawn" if case.device == "cuda" else "forkserver")
    if case.device != "cuda":
        context.set_forkserver_preload(_PRELOADED)  # saves each process the imports
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start_process) as pool:
        return pool.submit(_peak_here, case, method).result()


def _start_process() -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_MAPPING_THRESHOLD, 64 * 1024)


def _peak_here(case: Case, method: str) -> float | None:
    bench = open_case(case)
    modules = map_modules(bench.chat.model)
    try:
        run = METHODS[method].prepare(bench)
        run(Work(modules[:1], [0], bench.prompts[:2]))  # what a library makes once is not the method's
    except Exception:  # the row of times says why
        return None
    work = Work(modules[:SWEPT_MODULES], [0], bench.prompts)
    return _peak_of(lambda: run(work), case.device)


def _peak_of(work: Callable[[], object], device: str) -> float:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    _give_back_freed_memory()
    _reset_peak()
    before = _resident("VmRSS:")
    work()
    return max(0, _resident("VmHWM:") - before) / MIB


def _give_back_freed_memory() -> None:
    """Otherwise work that fits into what loading left behind would seem to need none."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int:
    """Return bytes: the resident set now (`VmRSS:`) or its peak since it was reset (`VmHWM:`)."""
    if sys.platform != "linux":  # the peak of the process's whole life; too large where loading took more
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
