"""`securetune protect MODEL --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json


@reports_errors
def protect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, folder or hub name.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; training.method_options.subspaces.")],
    modules: Annotated[str | None, typer.Option(metavar="FILE", help="Manifest, for sensitive modules.")] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Gather the directions that `protected-subspace` protects, once for many trainings of a model."""
    from securetune.config import ProtectConfig, merge, parse_overrides, validate

    content = merge({"model": {"name": model}}, parse_overrides(set_ or []))
    content = merge(content, {"training": {"modules": modules}} if modules is not None else {})
    config = validate(ProtectConfig, content)
    with only_results_on_stdout():
        from securetune.pipeline.protecting import protect as gather

        saved = gather(config, out)
    if json_:
        print_json(saved.model_dump(mode="json"))
        return
    ranks = [each.rank for each in saved.inputs]
    widths = sum(each.width for each in saved.inputs)
    print(
        f"{len(saved.modules)} projections with {len(ranks)} inputs: {sum(ranks):,} of {widths:,} directions, from "
        f"{saved.prompts} prompts ({saved.tokens:,} tokens)"
    )
    print(f"Subspaces: {out}")
