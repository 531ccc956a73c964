"""`securetune train [CONFIG.yaml] --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.display import StageDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json


@reports_errors
def train(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder; the tuned model is DIR/model.")],
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="A recipe; flags win over it.")] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Method, or a label of the recipe.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Embedded model, folder or hub name.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Conversations: a file, hub:owner/name[:split] or folder:PATH of a data set."
        ),
    ] = None,
    modules: Annotated[str | None, typer.Option(metavar="FILE", help="Manifest that `search` wrote.")] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Fine-tune one model with one method."""
    from securetune.config import load_train_config, parse_overrides

    resolved = load_train_config(config, parse_overrides(set_ or []), method, model, data, modules)
    with only_results_on_stdout():
        from securetune.pipeline.chaining import final_model
        from securetune.pipeline.single_stages import train_model

        with StageDisplay() as progress:
            result = train_model(resolved, out, progress)
        final = final_model(resolved.training, resolved.model, out)
    if json_:
        print_json(result.model_dump(mode="json"))
    else:
        for step in result.data.preparation.steps if result.data.preparation else ():
            changes = f"{step.rows_before:,} rows + {step.added:,} - {step.dropped:,} = {step.rows_after:,}"
            print(f"Data: {step.defense}{' (attack)' * (step.purpose == 'attack')}: {changes}")
        if resolved.training.generation:
            names = ", ".join(step.name for step in resolved.training.generation)
            print(f"At generation: {names} (generation_defenses.json in the model's folder)")
        print(f"Model: {final}")
