"""Draw how well each robustness score foresees what tuning a module really does to refusals.

    python benchmarks/ground_truth/module_damage.py --robustness a.json b.json --json > rows.json
    python benchmarks/ground_truth/figure.py rows.json docs/figures/module_damage.svg

One panel a training loss, one line a score, one dot a data order; the tick is their mean. To the right of the line at 0
the score ranks modules rightly, to the left wrongly.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from securetune.artifacts import write_text
from securetune.reporting.figures import new_figure, svg_text

NAMES = {
    "accuracy": "accuracy (the paper's)",
    "margin_fall": "fall of the classifier's margin",
    "closed_form_shift": "closed form, classifier",
    "refusal_share": "share still refused",
    "refusal_margin_fall": "fall of the refusal margin",
    "refusal_closed_form_shift": "closed form, refusal margin",
}
COLOURS = {"gaussian": "#0072b2", "update": "#d55e00", "mean": "#009e73"}
MARKERS = {"gaussian": "o", "update": "^", "mean": "s"}

Row = dict[str, Any]


def lines_of(rows: list[Row]) -> list[tuple[str, str]]:
    """Return the pairs of perturbation and score that there are, in the order in which they are drawn."""
    found = {(row["perturbation"], row["score"]) for row in rows}
    return [(kind, score) for kind in COLOURS for score in NAMES if (kind, score) in found]


def draw_panel(axes: Axes, rows: list[Row], lines: list[tuple[str, str]], loss: float) -> None:
    """Draw one training loss."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["loss"] == loss:
            found[row["perturbation"], row["score"]].append(row["spearman"])
    for place, line in enumerate(lines):
        if values := found[line]:
            heights = [-place] * len(values)
            axes.plot(values, heights, MARKERS[line[0]], color=COLOURS[line[0]], markersize=4, alpha=0.6)
            axes.plot([mean(values)], [-place], "|", color="black", markersize=11, markeredgewidth=1.6)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlim(-0.6, 1.0)
    axes.set_xticks([-0.5, 0, 0.5, 1])
    axes.set_title(f"loss {loss:g}", fontsize=9)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def figure_of(rows: list[Row]) -> str:
    """Return the figure as an SVG document."""
    losses = sorted({row["loss"] for row in rows}, reverse=True)
    lines = lines_of(rows)
    with new_figure("module-damage", 9.5, 0.8 + 0.27 * len(lines)) as figure:
        figure.set_facecolor("white")  # it is looked at on its own, on pages of any colour
        panels = figure.subplots(1, len(losses), sharey=True)
        for axes, loss in zip(panels, losses, strict=True):
            draw_panel(axes, rows, lines, loss)
        panels[0].set_yticks(
            [-place for place in range(len(lines))], [f"{kind}: {NAMES[score]}" for kind, score in lines], fontsize=8
        )
        figure.supxlabel("Spearman's rank correlation with the fall of the refusal margin after tuning", fontsize=9)
        return svg_text(figure, "module-damage")


def main() -> None:
    """Read the rows, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="what `module_damage.py --json` prints")
    parser.add_argument("figure", type=Path, help="the SVG file to write")
    arguments = parser.parse_args()
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.figure, figure_of(json.loads(arguments.rows.read_text())["rows"]))


if __name__ == "__main__":
    main()
