"""`securetune export robust_modules.json --model MODEL --to TOOL --out FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json


@reports_errors
def export(
    manifest: Annotated[Path, typer.Argument(metavar="robust_modules.json", help="Manifest that `search` wrote.")],
    to: Annotated[str, typer.Option(metavar="peft|axolotl|llamafactory", help="The tool that trains.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Embedded model, folder or hub name.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    tune: Annotated[
        str | None, typer.Option(metavar="full|lora", help="What trains. Left out: lora for peft, else full.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="swat|ml-lr", help="The warm-up, or learning rates.")] = "swat",
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Write a manifest for another training tool. What it selects is checked against the model's real parameters."""
    from securetune.config import ExportConfig, merge, parse_overrides, validate

    training = {"method": method, "tune": tune or ("lora" if to == "peft" else "full")}
    content = merge({"training": training, "model": {"name": model}}, parse_overrides(set_ or []))
    with only_results_on_stdout():
        from securetune.pipeline.exporting import export as export_manifest

        exported = export_manifest(validate(ExportConfig, content), manifest, to, out)
    if json_:
        print_json({**exported._asdict(), "path": str(out)})
        return
    count = len(exported.parameters)
    print(f"{exported.entries} {exported.kind} match {count} parameters of {model}, exactly the manifest's")
    for note in exported.notes:
        print(note)
    print(f"Written: {out}")
