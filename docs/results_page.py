"""Writes docs/results.md from the experiments under results/: `make docs`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from securetune.artifacts import Experiment, read_artifact
from securetune.reporting import FRONTIER, experiment_page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "results.md"
FIGURES = ROOT / "docs" / "figures"


def results_page() -> str:
    """Return the page: every committed experiment, with its command and its commit's figures."""
    parts = [
        "# Results",
        "",
        "Written by `python docs/results_page.py` from the files under `results/`. What is measured and how it is",
        "matched is in [experiments.md](experiments.md). Most of it is on tiny world, the embedded test bench, and",
        "some on a model of six million parameters made of real text (`benchmarks/real_text`, which is not shipped):",
        "what is seen on either is no evidence about large models.",
    ]
    for folder in sorted(path.parent for path in RESULTS.glob("*/experiment.json")):
        found = read_artifact(folder / "experiment.json", Experiment)
        title = (folder / "title.txt").read_text(encoding="utf-8").strip()
        page = experiment_page(found, title).replace(f"({FRONTIER})", f"(figures/{folder.name}.svg)")
        remarks = (folder / "remarks.md").read_text(encoding="utf-8").strip()
        body = re.sub(r"^#", "##", page, flags=re.MULTILINE)
        heading, _, rest = body.partition("\n")
        versions = ", ".join(f"{name} {version}" for name, version in sorted(found.environment.items()))
        command = f"securetune experiment {_configuration(folder.name)} --out runs/{folder.name}"
        parts += [
            "",
            heading,
            "",
            remarks,
            "",
            f"`{command}` ({found.seconds / 60:.0f} minutes; {versions})",
            rest.rstrip(),
        ]
    return "\n".join(parts) + "\n"


def _configuration(name: str) -> str:
    """Return where an experiment's configuration is, from the repository's root."""
    places = (f"configs/experiments/{name}.yaml", f"benchmarks/real_text/{name.removeprefix('real_text_')}.yaml")
    return next(place for place in places if (ROOT / place).is_file())


def main() -> None:
    """Write the page and copy its figures."""
    FIGURES.mkdir(exist_ok=True)
    for figure in RESULTS.glob(f"*/{FRONTIER}"):
        shutil.copyfile(figure, FIGURES / f"{figure.parent.name}.svg")
    PAGE.write_text(results_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
