"""`securetune analyze MODEL --out robustness.json`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securetune.cli.display import StageDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Harmful, Harmless, Json, Set
from securetune.cli.output import only_results_on_stdout, print_json
from securetune.processes import launched_processes
from securetune.progress import silent

if TYPE_CHECKING:
    from securetune.artifacts import ModuleRobustness, RobustnessReport

_SHOWN = 5


@reports_errors
def analyze(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, folder or hub name.")],
    out: Annotated[Path, typer.Option(metavar="robustness.json", help="The file to write.")],
    harmful: Harmful = None,
    harmless: Harmless = None,
    perturbation: Annotated[
        str | None, typer.Option(metavar="NAME", help="gaussian (noise; the default), update (needs --data) or mean.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Your data, for --perturbation update.")] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Score the robustness of every module. How much does noise in it disturb the security features?"""
    from securetune.config import AnalyzeConfig, merge, parse_overrides, validate

    probes = {key: file for key, file in (("harmful", harmful), ("harmless", harmless)) if file is not None}
    flags: dict[str, Any] = {"model": {"name": model}, "probes": probes}
    if perturbation is not None:
        flags["analysis"] = {"perturbation": perturbation}
    if data is not None:
        flags["data"] = data
    content = merge(parse_overrides(set_ or []), flags)
    config = validate(AnalyzeConfig, content)
    with only_results_on_stdout(), launched_processes() as processes:
        from securetune.pipeline.single_stages import analyze_model

        with StageDisplay() if processes.is_main else nullcontext(silent) as progress:
            report = analyze_model(config, out, progress, processes)
    if not processes.is_main:
        return
    if json_:
        print_json(report.model_dump(mode="json"))
    else:
        _show(report, out)


def _show(report: RobustnessReport, out: Path) -> None:
    # The order of the paper's score: accuracy first, the margin breaks ties.
    ordered = sorted(report.modules, key=lambda module: (module.accuracy, -module.margin_fall))
    perturbation = report.settings.get("perturbation", "gaussian")
    print(
        f"{len(report.modules)} modules of {report.model.name}, perturbation {perturbation} of size {report.epsilon:g}"
    )
    print("Most sensitive:  " + ", ".join(_described(module) for module in ordered[:_SHOWN]))
    print("Most robust:     " + ", ".join(_described(module) for module in reversed(ordered[-_SHOWN:])))
    for agreement in (report.closed_form_at_epsilon, report.closed_form_small_noise):
        if agreement is not None:
            print(
                f"Closed form against sampling at {agreement.epsilon:.3g}: Spearman {agreement.spearman:.2f}, "
                f"median ratio {agreement.median_ratio:.2f}"
            )
    for control in report.controls:
        verdict = "not tested" if control.passed is None else "passed" if control.passed else "NOT PASSED"
        print(f"Control, {control.name}: {verdict}. {control.sentence}")
    print(f"Analysis: {out}")


def _described(module: ModuleRobustness) -> str:
    return f"{module.type} of layer {module.layer} ({module.accuracy:.2f})"
