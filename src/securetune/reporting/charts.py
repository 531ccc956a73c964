"""The report's other figures: what each method costs and saves, how far it moved the weights, how the search went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from securetune.artifacts import Comparison, MethodComparison, RobustnessReport
from securetune.reporting.figures import GRID, INK, METHOD_COLOURS, MUTED, colour_of, marker_of, new_figure, svg_text
from securetune.reporting.run_results import START
from securetune.reporting.verdict import display_name

_LEAST_ACCURACY_RANGE = 0.2
_TYPE_STYLES = {
    "Q": ("#d55e00", "o"),
    "K": ("#e69f00", "s"),
    "V": ("#56b4e9", "^"),
    "O": ("#0072b2", "v"),
    "Gate": ("#cc79a7", "D"),
    "Up": ("#009e73", "P"),
    "Down": ("#7d8791", "X"),
}


def tradeoff_svg(comparison: Comparison) -> str | None:
    """Draw ASR against task accuracy, every seed small and every method's mean large; None without both metrics.

    The start model is a line at its ASR: it has not learned the task, and a point at its task accuracy would squeeze
    all others into a corner.
    """
    rows = {label: row for label, row in comparison.methods.items() if row.asr and row.task_accuracy and label != START}
    if not rows:
        return None
    labels, start = list(comparison.methods), comparison.methods.get(START)
    with new_figure("tradeoff", 5.2, 3.9) as figure:
        axes = figure.add_subplot()
        if start is not None and start.asr is not None:
            axes.axhline(start.asr.mean, color=METHOD_COLOURS[START], linewidth=1.6, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                "start model", (0, start.asr.mean), xycoords=("axes fraction", "data"), xytext=(4, 4),
                textcoords="offset points", fontsize=9, color=MUTED,
            )  # fmt: skip
        for label, row in rows.items():
            _draw_method(axes, label, row, labels)
        axes.set_xlabel("task accuracy (right is better)")
        axes.set_ylabel("attack success rate (lower is better)")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(*_accuracy_limits(rows.values()))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(True)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.2)
        return svg_text(figure, "tradeoff")


def _accuracy_limits(rows: Iterable[MethodComparison]) -> tuple[float, float]:
    """Return a range that holds every interval and seed, and at least 20 points, so that noise does not fill it."""
    values = [
        value
        for row in rows
        if row.task_accuracy
        for value in (row.task_accuracy.low, row.task_accuracy.high, *row.task_accuracy.per_seed)
    ]
    low, high = min(values), max(values)
    spare = max(0.0, _LEAST_ACCURACY_RANGE - (high - low))
    high = min(1.0, high + spare / 2)
    return max(0.0, min(low, high - _LEAST_ACCURACY_RANGE)) - 0.01, high + 0.01


def _draw_method(axes: Axes, label: str, row: MethodComparison, labels: list[str]) -> None:
    assert row.asr is not None
    assert row.task_accuracy is not None
    style: dict[str, Any] = {"color": colour_of(label, labels), "marker": marker_of(label, labels)}
    x, y = row.task_accuracy, row.asr
    if len(row.seeds) > 1:
        axes.plot(x.per_seed, y.per_seed, linestyle="none", markersize=4.5, alpha=0.55, markeredgewidth=0, **style)
    axes.errorbar(
        x.mean,
        y.mean,
        xerr=[[max(0.0, x.mean - x.low)], [max(0.0, x.high - x.mean)]],
        yerr=[[max(0.0, y.mean - y.low)], [max(0.0, y.high - y.mean)]],
        linestyle="none",
        markersize=12 if style["marker"] == "*" else 9,
        elinewidth=1.3,
        capsize=2.5,
        markeredgecolor=INK,
        markeredgewidth=0.7,
        label=display_name(label),
        **style,
    )


def update_norms_svg(comparison: Comparison) -> str | None:
    """Draw how far each method moved the modules inside and outside Mods_Rob; None if no training recorded it."""
    rows = {label: row.update_norms for label, row in comparison.methods.items() if row.update_norms}
    if not rows:
        return None
    labels = list(comparison.methods)
    with new_figure("updates", 5.2, 1.2 + 0.42 * len(rows)) as figure:
        axes = figure.add_subplot()
        for place, (label, norms) in enumerate(reversed(rows.items())):
            colour = colour_of(label, labels)
            axes.plot([norms.inside, norms.outside], [place, place], color=colour, linewidth=2.2, alpha=0.45, zorder=1)
            axes.plot(norms.inside, place, marker="o", markersize=8.5, color=colour, linestyle="none")
            axes.plot(
                norms.outside, place, marker="o", markersize=8.5, color=colour, fillstyle="none", markeredgewidth=1.8,
                linestyle="none",
            )  # fmt: skip
            if norms.other is not None:
                axes.plot(norms.other, place, marker="|", markersize=11, color=MUTED, markeredgewidth=1.8)
        axes.set_yticks(range(len(rows)), [display_name(label) for label in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(left=0)
        axes.set_xlabel("relative update ‖ΔW‖ / ‖W‖")
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        keys: list[tuple[dict[str, Any], str]] = [
            ({"marker": "o"}, "Mods_Rob"),
            ({"marker": "o", "fillstyle": "none", "markeredgewidth": 1.8}, "other modules"),
            ({"marker": "|", "markeredgewidth": 1.8}, "embeddings, norms, head"),
        ]
        for style, text in keys:
            axes.plot([], [], linestyle="none", color=MUTED, markersize=8, label=text, **style)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.1, columnspacing=1.0)
        return svg_text(figure, "updates")


def agreement_svg(report: RobustnessReport) -> str:
    """Draw the closed form against the sampled sweep, one point a module, on logarithmic axes."""
    with new_figure("agreement", 5.2, 4.0) as figure:
        axes = figure.add_subplot()
        shown = [
            (module.type, module.sampled_shift, module.closed_form_shift)
            for module in report.modules
            if module.sampled_shift > 0 and module.closed_form_shift
        ]
        values = [value for _, sampled, closed_form in shown for value in (sampled, closed_form)]
        if values:
            ends = (min(values) / 1.25, max(values) * 1.25)
            axes.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
            axes.set_xlim(ends)
            axes.set_ylim(ends)
        for kind, (colour, marker) in _TYPE_STYLES.items():
            axes.plot(
                [sampled for name, sampled, _ in shown if name == kind],
                [closed_form for name, _, closed_form in shown if name == kind],
                linestyle="none", marker=marker, color=colour, markersize=6.5, alpha=0.9, label=kind,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_logarithmic(axes.xaxis)
        _plain_logarithmic(axes.yaxis)
        axes.set_xlabel("sampled shift of the logit (root mean square)")
        axes.set_ylabel("closed form, one backward pass")
        axes.grid(True)
        figure.legend(loc="outside right upper", handletextpad=0.2)
        return svg_text(figure, "agreement")


def _plain_logarithmic(axis: Axis) -> None:
    """Label 1, 2, 5, 10, … as plain numbers; matplotlib's own labels are formulas, which the figures do not set."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def trace_svg(trace: list[dict[str, Any]]) -> str | None:
    """Draw the accuracy under joint perturbation against the size of the set, at each step; None without steps."""
    if not trace:
        return None
    joined = [step for step in trace if step["decision"] == "joined"]
    refused = [step for step in trace if step["decision"] != "joined" and step["accuracy"] is not None]
    predicted = [step for step in trace if step["accuracy"] is None]
    with new_figure("trace", 5.2, 3.4) as figure:
        axes = figure.add_subplot()
        required = float(trace[0]["required_accuracy"])
        axes.axhline(required, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            "required", (1, required), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", fontsize=9, color=MUTED,
        )  # fmt: skip
        axes.plot(*_points(joined), color="#009e73", marker="o", markersize=6.5, linewidth=1.4, label="joined")
        axes.plot(
            *_points(refused), color="#d55e00", marker="x", markersize=7, markeredgewidth=1.8, linestyle="none",
            label="refused (halved or skipped)",
        )  # fmt: skip
        if predicted:
            axes.plot(
                *_points(predicted, "predicted_accuracy"), color="#0072b2", marker="+", markersize=8,
                markeredgewidth=1.8, linestyle="none", label="refused by the closed form",
            )  # fmt: skip
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of the projections' parameters in the tested set")
        axes.set_ylabel("accuracy, all perturbed at once")
        axes.grid(True, color=GRID)
        figure.legend(loc="outside upper left", ncols=2)
        return svg_text(figure, "trace")


def _points(steps: list[dict[str, Any]], key: str = "accuracy") -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([float(step["parameter_fraction"]) for step in steps]),
        np.array([float(step[key]) for step in steps]),
    )


def drift_svg(report: RobustnessReport) -> str | None:
    """Draw how far perturbing a module turns the states of the layers above it; None for an analysis without drift.

    One line a perturbed layer (mean over its modules), from that layer to the top: 1 - cosine between the perturbed and
    the intact state of the last prompt token. Lines differ in shade, width and, at their first point, in a number.
    """
    layers = sorted({module.layer for module in report.modules if module.drift})
    if not layers:
        return None
    shades = colormaps["cividis"](np.linspace(0.0, 0.85, len(layers)))
    step = max(1, len(layers) // 8)  # a line for each of 80 layers could not be told apart
    with new_figure("drift", 5.2, 3.6) as figure:
        axes = figure.add_subplot()
        for place, layer in list(enumerate(layers))[::step]:
            rows = [module.drift[layer:] for module in report.modules if module.layer == layer and module.drift]
            turned = 1 - np.array(rows, dtype=float).mean(axis=0)
            places = np.arange(layer, layer + len(turned))
            axes.plot(places, turned, color=shades[place], marker="o", markersize=4, linewidth=1.6)
            axes.annotate(
                str(layer), (places[0], turned[0]), xytext=(-5, 3), textcoords="offset points", ha="right",
                fontsize=8.5, color=INK,
            )  # fmt: skip
        axes.set_xlabel("layer whose state is compared")
        axes.set_ylabel("1 - cosine to the intact state")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, color=GRID)
        return svg_text(figure, "drift")
