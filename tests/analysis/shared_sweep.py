"""Analyzes a model in several processes; `torchrun` runs it in each of them.

    torchrun --nproc_per_node 2 shared_sweep.py MODEL OUT [failing rank]

Each process writes what it got and how many modules it perturbed to `OUT/<rank>.pt`.
"""

import sys
from pathlib import Path

import torch
from tiny_models import tiny_prompts

from securetune.analysis import Execution, sweep_modules
from securetune.features import GaussianPerturbation, SafetyClassifier
from securetune.models import load
from securetune.processes import OtherProcessError, launched_processes


class Counted(GaussianPerturbation):
    def applied(self, model, modules, size, seed):
        seen.update(module.name for module in modules)
        return super().applied(model, modules, size, seed)


seen: set[str] = set()


def classifier(seed: int) -> SafetyClassifier:
    generator = torch.Generator().manual_seed(seed)
    return SafetyClassifier(torch.randn(32, generator=generator, dtype=torch.float64), 0.1)


def sweep(model: str, execution: Execution):
    return sweep_modules(
        load(model),
        tiny_prompts("harmful", 0, 7),
        [classifier(0)],
        [0.5, 1.0],
        [0, 1],
        perturbation=Counted(),
        layer_classifiers=[classifier(1), classifier(2)],
        execution=execution,
    )


def main(model: str, out: Path, failing: int | None) -> None:
    torch.set_num_threads(1)
    with launched_processes() as processes:

        def progress(what: str, done: int, total: int) -> None:
            if processes.rank == failing and done > 4:
                raise OSError("no space left")

        try:
            with processes.failing_together():
                found = sweep(model, Execution(progress, out / "partial", processes))
        except (OtherProcessError, OSError) as error:
            (out / f"{processes.rank}.error").write_text(f"{type(error).__name__}: {error}")
            return
        values = found.readouts[classifier(0).name].perturbed
        content = {"values": values, "cosine": found.drift.cosine, "modules": sorted(seen), "count": processes.count}
        torch.save(content, out / f"{processes.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
