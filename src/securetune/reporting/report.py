"""`report.html`: one self-contained page, and `comparison.json` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from securetune.artifacts import Comparison, RobustnessReport, over_all_suites, write_json, write_text
from securetune.reporting.charts import agreement_svg, drift_svg, trace_svg, tradeoff_svg, update_norms_svg
from securetune.reporting.compare import compare
from securetune.reporting.examples import choose_examples
from securetune.reporting.facts import GLOSSARY, judge_glossary, list_facts
from securetune.reporting.figures import colour_of, inline_svg
from securetune.reporting.heatmap import heatmap_svg
from securetune.reporting.judges import choose_disagreements
from securetune.reporting.run_results import START, RunResults, read_run
from securetune.reporting.verdict import display_name
from securetune.untrusted_text import without_control_characters

REPORT, COMPARISON = "report.html", "comparison.json"
UNUSABLE_SHARE_TO_WARN = 0.05
"""Share of empty and looping answers from which the page says that a method's numbers are not reliable."""

_CONTENTS = (
    ("methods", "Methods"),
    ("cost", "Safety and usefulness"),
    ("modules", "Robust modules"),
    ("closed-form", "Closed form"),
    ("search", "Search"),
    ("examples", "Examples"),
    ("judges", "Judges"),
    ("settings", "Settings"),
    ("glossary", "Glossary"),
)


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html`, `comparison.json` and, if there is an analysis, `analysis/heatmap.svg`.

    Whatever is missing in the folder is named in the report; the rest is shown.

    Args:
        run_dir: A run folder.

    Returns:
        Path of the page.

    Example:
        >>> write_report("runs/demo")  # doctest: +SKIP
        PosixPath('runs/demo/report.html')

    Raises:
        ArtifactError: If the folder holds nothing of a run, or its files do not fit each other.
    """
    run = read_run(Path(run_dir))
    comparison = compare(run)
    figures = draw_figures(run, comparison)
    page = render_report(run, comparison, figures)
    heatmap = figures["heatmap_accuracy"]
    if heatmap.document is not None:
        write_text(run.path / "analysis" / "heatmap.svg", heatmap.document)
    write_json(run.path / COMPARISON, comparison)
    write_text(run.path / REPORT, page)
    return run.path / REPORT


class ReportFigure(NamedTuple):
    """One figure of the page.

    Attributes:
        document: SVG document, or None if the run lacks what it shows.
        description: What a reader who cannot see it is told.
    """

    document: str | None
    description: str


def draw_figures(run: RunResults, comparison: Comparison) -> dict[str, ReportFigure]:
    """Draw every figure for which the run has the numbers."""
    report, chosen = run.robustness, comparison.robust_modules
    accuracy = heatmap_svg(report, chosen) if report else None
    margin = heatmap_svg(report, chosen, "margin_fall") if report else None
    has_refusals = report is not None and report.refusal_openings is not None
    refusals = heatmap_svg(report, chosen, "refusal_margin_fall") if report and has_refusals else None
    return {
        "tradeoff": ReportFigure(tradeoff_svg(comparison), "Attack success rate against task accuracy, by method"),
        "updates": ReportFigure(update_norms_svg(comparison), "Relative update inside and outside Mods_Rob, by method"),
        "trace": ReportFigure(trace_svg(run.trace), "Accuracy at each step of the search"),
        "agreement": ReportFigure(agreement_svg(report) if report else None, "Closed form against sampled, by module"),
        "heatmap_accuracy": ReportFigure(accuracy, "Accuracy by layer and module type"),
        "heatmap_margin": ReportFigure(margin, "Fall of the logit by layer and module type"),
        "heatmap_refusals": ReportFigure(refusals, "Fall of the refusal margin by layer and module type"),
        "drift": ReportFigure(drift_svg(report) if report else None, "Drift of the states through the layers"),
    }


def render_report(run: RunResults, comparison: Comparison, figures: Mapping[str, ReportFigure]) -> str:
    """Make the page's text."""
    labels = list(comparison.methods)
    shown = [label for label, row in comparison.methods.items() if not row.is_control]
    differing, count = choose_disagreements(run)
    values: dict[str, Any] = {
        "title": _title(run),
        "css": Markup(_resource("report.css")),
        "comparison": comparison,
        "warnings": _warnings(run, comparison),
        "contents": [entry for entry in _CONTENTS if entry[0] != "judges" or comparison.agreement],
        "colours": {label: colour_of(label, labels) for label in labels},
        "tiles": {label: comparison.methods[label] for label in shown},
        "wrappers": list(dict.fromkeys(s for row in comparison.methods.values() for s in row.wrapped_asr)),
        "seeds_table": _seeds_table(comparison),
        "robustness": run.robustness,
        "agreements": _agreements(run),
        "manifest": run.manifest,
        "steps": run.trace,
        "foreseen": sum(step["accuracy"] is None for step in run.trace),
        "perturbation": _perturbation(run.robustness) if run.robustness else "",
        "decisions": {kind: sum(s["decision"] == kind for s in run.trace) for kind in ("joined", "halved", "skipped")},
        "examples": choose_examples(run, shown, comparison.asr_judge, comparison.harmfulness_judge),
        "judge_pairs": over_all_suites(comparison.agreement),
        "disagreements": differing,
        "disagreement_count": count,
        "facts": list_facts(run),
        "glossary": [*judge_glossary(run, comparison), *GLOSSARY],
        "version": _version(),
        "folder": run.path.name,
        **{name: _inline(name, figure) for name, figure in figures.items()},
    }
    return _environment().from_string(_resource("report.html.jinja")).render(values)


def _inline(name: str, figure: ReportFigure) -> Markup | None:
    """Mark a figure as safe to put into the page: matplotlib has escaped the texts in it."""
    return Markup(inline_svg(figure.document, name, figure.description)) if figure.document else None


def _title(run: RunResults) -> str:
    models = [model.scores.model.name for label, model in run.evaluated if label == START]
    models += [run.config.model.name] if run.config else []
    models += [run.robustness.model.name] if run.robustness else []
    return f"Fine-tuning {models[0]} without losing its safety" if models else run.path.name


def _warnings(run: RunResults, comparison: Comparison) -> list[str]:
    warnings = []
    if run.missing:
        shown = ", ".join(run.missing[:6]) + (f" and {len(run.missing) - 6} more" if len(run.missing) > 6 else "")
        warnings.append(f"This run is not complete. Still missing: {shown}.")
    for label, row in comparison.methods.items():
        if row.unusable_share > UNUSABLE_SHARE_TO_WARN:
            warnings.append(
                f"{row.unusable_share:.0%} of the answers of {display_name(label)} are empty or loop. "
                "No judge is reliable on such answers: read its numbers with care."
            )
    if any(len(row.seeds) == 1 for row in comparison.methods.values()):
        warnings.append("One seed only: results of fine-tuning vary strongly over seeds; use at least three to decide.")
    return warnings


def _seeds_table(comparison: Comparison) -> list[list[str]]:
    rows = []
    for label, row in comparison.methods.items():
        for place, seed in enumerate(row.seeds):
            rates = [f"{m.per_seed[place]:.1%}" if m else "–" for m in (row.asr, row.task_accuracy, row.over_refusal)]
            rating = f"{row.harmfulness.per_seed[place]:.2f}" if row.harmfulness else "–"
            rows.append([label, str(seed), rates[0], rating, *rates[1:]])
    return rows


def _perturbation(report: RobustnessReport) -> str:
    """Say in words how modules were perturbed."""
    size = f"{report.epsilon:.3g}"
    return {
        "gaussian": f"Gaussian noise of {size} × the root mean square of its weights",
        "update": f"{size} times what short plain fine-tuning runs on the user's data did to it",
        "mean": f"moving its output {report.epsilon:.0%} of the way to its mean over prompts and tokens",
    }[report.settings.get("perturbation", "gaussian")]


def _agreements(run: RunResults) -> list[Any]:
    if run.robustness is None:
        return []
    found = [run.robustness.closed_form_small_noise, run.robustness.closed_form_at_epsilon]
    return [agreement for agreement in found if agreement is not None]


def _environment() -> Environment:
    """Make the template engine: every value is escaped and cleaned, and a name that is not given is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_cleaned, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": lambda share: f"{share:.1%}",
        "points_only": lambda share: f"{share * 100:.1f}",
        "percent_or_dash": lambda share: "–" if share is None else f"{share:.1%}",
        "points": lambda share: f"{share * 100:+.1f}".replace("-", "−"),
        "rating": lambda metric: f"{metric.mean:.2f}",
        "round2": lambda number: f"{number:.2f}",
        "round3": lambda number: f"{number:.3g}",
        "number_or_dash": lambda number: f"{number:.3g}" if isinstance(number, int | float) else "–",
        "display_name": display_name,
        "short_suite": lambda suite: suite.removeprefix("tiny-world-"),
    }
    return environment


def _cleaned(value: Any) -> Any:
    """Take control characters out of every text that is put into the page, whoever wrote it, but for our own markup."""
    return without_control_characters(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return version("securetune")
    except PackageNotFoundError:
        return "(not installed)"
