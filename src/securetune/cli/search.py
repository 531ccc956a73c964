"""`securetune search robustness.json --out robust_modules.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.display import StageDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Harmful, Harmless, Json, Set
from securetune.cli.output import only_results_on_stdout, print_json


@reports_errors
def search(
    robustness: Annotated[Path, typer.Argument(metavar="robustness.json", help="What `analyze` wrote.")],
    out: Annotated[Path, typer.Option(metavar="robust_modules.json", help="The manifest to write.")],
    harmful: Harmful = None,
    harmless: Harmless = None,
    study: Annotated[
        bool,
        typer.Option("--study", help="Also search with other seeds, tolerances and targets: search_study.json."),
    ] = False,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Choose modules that are robust jointly. Takes what `analyze` wrote; writes the manifest for `train`."""
    from securetune.artifacts import RobustnessReport, read_artifact
    from securetune.config import SearchConfig, merge, parse_overrides, validate

    report = read_artifact(robustness, RobustnessReport)
    probes = {key: file for key, file in (("harmful", harmful), ("harmless", harmless)) if file is not None}
    model = {"name": report.model.name, "revision": report.model.revision}
    content = merge(merge({"model": model}, parse_overrides(set_ or [])), {"probes": probes})
    config = validate(SearchConfig, content)
    with only_results_on_stdout():
        from securetune.pipeline.single_stages import search_model

        with StageDisplay() as progress:
            manifest = search_model(config, robustness, out, progress, study)
    if json_:
        print_json(manifest.model_dump(mode="json"))
        return
    for module in manifest.modules:
        print(module.name)
    print(
        f"{len(manifest.modules)} modules, {manifest.parameter_fraction:.0%} of the projections' parameters; with all "
        f"of them perturbed the classifier's accuracy is {manifest.joint_accuracy:.3f} (intact: "
        f"{manifest.intact_accuracy:.3f})"
    )
    print(f"Manifest: {out}")
    if study:
        print(f"Study: {out.with_name('search_study.json')}")
