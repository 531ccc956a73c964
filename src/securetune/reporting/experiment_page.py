"""An experiment as a page of Markdown, and its frontier as a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib import colormaps
from matplotlib.ticker import PercentFormatter

from securetune.artifacts import (
    ComparedRow,
    Experiment,
    ExperimentPoint,
    MatchedBy,
    MatchedComparison,
    MetricSummary,
    PairedChange,
)
from securetune.reporting.compare_models import METRICS
from securetune.reporting.figures import MUTED, new_figure, svg_text
from securetune.reporting.verdict import display_name

FRONTIER = "frontier.svg"
_NOT_MEASURED = "–"
_LEGEND_COLUMNS = 3
_COLOURS = [colormaps["tab10"](place) for place in range(10)]
_MARKERS = "os^vDP*X<"
MATCHED_HEADINGS: dict[MatchedBy, str] = {
    "task_accuracy": "At matched task accuracy",
    "training_loss": "At matched training loss",
}


def experiment_page(experiment: Experiment, title: str = "Experiment") -> str:
    """Return the page: what was compared, the matched tables, every point.

    Args:
        experiment: What was found.
        title: Heading of the page.
    """
    parts = [f"# {plain_markdown(title)}", "", *_introduction(experiment)]
    for matched in experiment.matched:
        parts += ["", f"## {MATCHED_HEADINGS[matched.by]}", "", *_matched_section(matched, experiment)]
    parts += ["", "## Every setting", "", *_points_table(experiment.points), ""]
    return "\n".join(parts)


def _introduction(experiment: Experiment) -> list[str]:
    seeds = sorted({seed for point in experiment.points for seed in point.seeds})
    start = f" The start model's attack success rate (ASR) is {_summary(experiment.start_asr)}."
    methods = len({point.method for point in experiment.points})
    lines = [
        f"Start model `{plain_markdown(experiment.model)}`; {methods} methods, {len(experiment.points)} settings, "
        f"seeds {', '.join(map(str, seeds)) or 'none'}.{start if experiment.start_asr else ''} In brackets are "
        "95% intervals over seeds and prompts. Settings were chosen on other prompts than those reported here.",
        *(f"\n{plain_markdown(note)}" for note in experiment.notes),
    ]
    if any(point.asr and point.task_accuracy for point in experiment.points):
        lines += ["", f"![ASR against task accuracy, for every setting]({FRONTIER})"]
    return lines


def _matched_section(matched: MatchedComparison, experiment: Experiment) -> list[str]:
    what = {
        "task_accuracy": f"Each method's safest setting that reaches a task accuracy of {matched.target:.1%} on the "
        "selection prompts.",
        "training_loss": f"Each method's setting whose final training loss is the nearest to {matched.target:.4f} nats "
        "a token.",
    }[matched.by]
    chosen = (f"{plain_markdown(method)}: `{label}`" for method, label in matched.chosen.items())
    lines = [f"{what} {', '.join(chosen)}."]
    for reason, methods in by_reason(matched).items():
        lines += ["", f"Not compared: {plain_markdown(', '.join(methods))}; {reason}."]
    if matched.comparison is None:
        return lines
    rows = matched.comparison.rows
    lines += ["", markdown_row(["method", *map(_heading, rows)]), markdown_row(["---", *["---:"] * len(rows)])]
    for label in matched.comparison.sources:
        lines.append(markdown_row([plain_markdown(label), *(cell(row, label) for row in rows)]))
    lines += [
        "",
        f"Below each value is its change against {plain_markdown(experiment.reference)} in points, and p after Holm's "
        "correction over the methods, column by column: exact McNemar for one seed, otherwise a sign-flip permutation "
        "test over prompts, which speaks of these seeds.",
    ]
    return lines


def _heading(row: ComparedRow) -> str:
    metric = "task accuracy" if row.metric == "task_accuracy" else METRICS[row.metric].heading
    suite = row.suite or f"mean over {len(row.suites)} suites"
    return plain_markdown(", ".join(filter(None, [metric, suite, row.judge])))


def cell(row: ComparedRow, label: str) -> str:
    """Return a value with its interval, and below it the change against the reference."""
    value, change = row.values[label], row.changes.get(label)
    if value is None:
        return _NOT_MEASURED
    is_rating = row.metric == "harmfulness"
    shown = (
        f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
        if is_rating
        else f"{value.value * 100:.1f} [{value.low * 100:.1f}, {value.high * 100:.1f}]"
    )
    return f"{shown}<br>{_change(change, 1 if is_rating else 100)}" if change else shown


def _change(change: PairedChange, scale: int) -> str:
    low, high = change.low * scale, change.high * scale
    p = "" if change.p_holm is None else f", p {'< 0.001' if change.p_holm < 0.001 else f'{change.p_holm:.3f}'}"
    return f"{change.value * scale:+.1f} [{low:+.1f}, {high:+.1f}]{p}"


def _points_table(points: Iterable[ExperimentPoint]) -> list[str]:
    columns = ["setting", "seeds", "ASR", "ASR under attacks (mean)", "task accuracy", "over-refusal", "final loss"]
    lines = [markdown_row([*columns, "frontier"]), markdown_row(["---", *["---:"] * 6, "---"])]
    for point in points:
        attacks = list(point.wrapped_asr.values())
        mean = f"{sum(each.mean for each in attacks) / len(attacks):.1%}" if attacks else _NOT_MEASURED
        loss = point.final_loss_nats_per_token
        lines.append(
            markdown_row(
                [
                    f"`{point.label}`",
                    str(len(point.seeds)),
                    _summary(point.asr),
                    mean,
                    _summary(point.task_accuracy),
                    _summary(point.over_refusal),
                    _NOT_MEASURED if loss is None else f"{loss:.4f}",
                    "yes" if point.on_frontier else "",
                ]
            )
        )
    return lines


def _summary(found: MetricSummary | None) -> str:
    return _NOT_MEASURED if found is None else f"{found.mean:.1%} [{found.low:.1%}, {found.high:.1%}]"


def by_reason(matched: MatchedComparison) -> dict[str, list[str]]:
    """Return the methods that are not compared, by why."""
    found: dict[str, list[str]] = {}
    for method, reason in matched.not_reached.items():
        found.setdefault(reason, []).append(method)
    return found


def markdown_row(cells: Iterable[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def plain_markdown(text: str) -> str:
    """Return text that cannot leave its cell or become markup."""
    return "".join("\\" + sign if sign in "|<>`*_[]" else sign for sign in " ".join(text.split()))


def frontier_svg(experiment: Experiment) -> str | None:
    """Draw ASR against task accuracy: every setting with its intervals, the frontier of each method as a line."""
    shown = [point for point in experiment.points if point.asr and point.task_accuracy]
    if not shown:
        return None
    methods = list(dict.fromkeys(point.method for point in experiment.points))
    with new_figure("frontier", 6.8, 4.2 + 0.22 * math.ceil(len(methods) / _LEGEND_COLUMNS)) as figure:
        axes = figure.add_subplot()
        if experiment.start_asr is not None:
            axes.axhline(experiment.start_asr.mean, color=MUTED, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1)
        for method in methods:
            own = [point for point in shown if point.method == method]
            style = _style(methods.index(method))
            for point in own:
                x, y = point.task_accuracy, point.asr
                assert x is not None
                assert y is not None
                axes.errorbar(
                    x.mean, y.mean, xerr=_bars(x), yerr=_bars(y), linestyle="none", markersize=6, elinewidth=0.8,
                    alpha=1.0 if point.on_frontier else 0.35, **style,
                )  # fmt: skip
            line = sorted(
                (p.task_accuracy.mean, p.asr.mean) for p in own if p.on_frontier and p.asr and p.task_accuracy
            )
            axes.plot(
                [x for x, _ in line], [y for _, y in line], linewidth=1.4, label=display_name(method), **style
            )  # fmt: skip
        axes.set_xlabel("task accuracy (right is better)")
        axes.set_ylabel("attack success rate (lower is better)")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))  # as many decimals as tell the ticks apart
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(-0.03, 1.03)
        axes.grid(True)
        figure.legend(
            loc="outside lower center", ncols=_LEGEND_COLUMNS, handletextpad=0.3, columnspacing=1.2, fontsize=9
        )
        return svg_text(figure, "frontier")


def _style(place: int) -> dict[str, Any]:
    """Return a colour and a marker that no other method has, up to 90 of them."""
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}


def _bars(found: MetricSummary) -> list[list[float]]:
    return [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
