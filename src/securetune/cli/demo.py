"""`securetune demo`."""

from __future__ import annotations

from collections import defaultdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import print_json
from securetune.cli.results import comparison_document, do_run, show_comparison

if TYPE_CHECKING:
    from securetune.artifacts import RobustModules
    from securetune.config import RunConfig

NOTE = (
    "Tiny world is a test bench of about a million parameters. It shows that the method works as described; it is no "
    "evidence about large models."
)


@reports_errors
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Training seeds for each method.")] = 3,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also a random set of modules, and frozen embeddings for every method.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run the whole method on an embedded model. Under five minutes on two cores; needs no network."""
    from securetune.artifacts import RobustModules, read_artifact
    from securetune.pipeline import RunFolder

    comparison = do_run(demo_config(seeds, controls), out)
    if json_:
        print_json(comparison_document(comparison, out))
        return
    manifest = read_artifact(RunFolder(out).manifest("searched"), RobustModules)
    show_comparison(comparison, out, describe_modules(manifest))
    print(NOTE)


def demo_config(seeds: int, controls: bool) -> RunConfig:
    """Return the packaged recipe, with the given number of seeds and, if asked for, the controls."""
    from securetune.config import check_run_config, read_yaml

    with resources.as_file(resources.files("securetune") / "configs" / "demo.yaml") as path:
        content = read_yaml(path)
    content["seeds"] = list(range(seeds))
    if controls:
        content["methods"] |= _controls(content["methods"])
    return check_run_config(content, where="demo.yaml")


def _controls(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a warm-up of a random set, and every method with embeddings, norms and head frozen throughout."""
    random_set = {"swat-random": {**methods["swat"], "method": "swat", "modules": "random"}}
    frozen = {
        f"{label}-frozen-embeddings": {"method": label, **settings, "other_parameters": "frozen"}
        for label, settings in {**methods, **random_set}.items()
    }
    return random_set | frozen


def describe_modules(manifest: RobustModules) -> str:
    """Name the chosen modules, gathered by type, and say why they were chosen."""
    layers: dict[str, list[int]] = defaultdict(list)
    for module in manifest.modules:
        layers[module.type].append(module.layer)
    named = "; ".join(f"{kind} of layers {', '.join(map(str, sorted(found)))}" for kind, found in layers.items())
    return (
        f"Chosen as robust: {len(manifest.modules)} modules with {manifest.parameter_fraction:.0%} of the projections' "
        f"weights. With all of them perturbed at once the classifier still finds {manifest.joint_accuracy:.1%} of the "
        f"harmful prompts (intact: {manifest.intact_accuracy:.1%}). They are: {named}."
    )
