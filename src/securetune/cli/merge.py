"""`securetune merge ADAPTER --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import only_results_on_stdout, print_json

Precision = Literal["float32", "bfloat16", "float16"]


@reports_errors
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder with adapter_config.json.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The model folder to write; it must not exist.")],
    dtype: Annotated[
        Precision, typer.Option(metavar="float32|bfloat16|float16", help="Precision of the merged weights.")
    ] = "float32",
    json_: Json = False,
) -> None:
    """Merge an adapter into its start model. Writes one ordinary model folder, which every tool reads."""
    with only_results_on_stdout():
        from securetune.pipeline.merging import merge as merge_adapter

        merged = merge_adapter(adapter, out, dtype)
    if json_:
        print_json({**merged._asdict(), "path": str(merged.path)})
    else:
        print(f"{merged.start_model} with {adapter}: {merged.parameter_count:,} parameters in {merged.dtype}")
        print(f"Model: {merged.path}")
