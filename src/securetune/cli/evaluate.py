"""`securetune evaluate MODEL --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from securetune.cli.display import StageDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json
from securetune.cli.shown_scores import show_scores


@reports_errors
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Embedded model, folder, hub name, or name on a server.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for scores.json and the answers.")],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE",
            help="NAME, NAME=PATH, a file of harmful prompts, harmless:FILE or attack-file:FILE; each with +ATTACK "
            "(repeatable).",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Judge; the first one leads (repeatable).")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="NAME, NAME=PATH (gsm8k, pubmedqa), or a file of JSON lines with `prompt`, `answer` and perhaps "
            "`choices`; numeric:FILE compares numbers.",
        ),
    ] = None,
    utility: Annotated[
        str | None,
        typer.Option(
            metavar="lm-eval:TASKS", help="Tasks of lm-eval, such as lm-eval:gsm8k,mmlu, where it is installed."
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="transformers, or vllm where it is installed.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask the model MODEL of an OpenAI-compatible server, such as http://localhost:8000/v1. The key comes "
            "from SECURETUNE_API_KEY or OPENAI_API_KEY.",
        ),
    ] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Measure a model's refusals and task accuracy. Writes scores.json and every answer."""
    from securetune.config import EvaluateConfig, merge, parse_overrides, validate

    flags: dict[str, Any] = {"suites": suite or None, "judges": judge or None, "task": task, "utility": utility}
    given = {key: value for key, value in flags.items() if value is not None}
    sections: dict[str, Any] = {"model": {"name": model}, "evaluation": given}
    if endpoint is not None:
        sections["endpoint"] = {"url": endpoint, "model": model}
    if backend is not None:
        sections["backend"] = backend
    content = merge(parse_overrides(set_ or []), sections)
    config = validate(EvaluateConfig, content)
    with only_results_on_stdout():
        from securetune.pipeline.single_stages import evaluate_model

        with StageDisplay() as progress:
            scores = evaluate_model(config, out, progress)
    if json_:
        print_json(scores.model_dump(mode="json"))
    else:
        show_scores(scores, out)
