"""`securetune evaluate MODEL --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securetune.cli.display import StageDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json

if TYPE_CHECKING:
    from securetune.artifacts import RateEstimate, Scores, SuiteScores, TaskScores, UtilityResult


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
        _show(scores, out)


def _show(scores: Scores, out: Path) -> None:
    if scores.generation:
        print(f"Shown through {', '.join(step.name for step in scores.generation)}")
    for suite in scores.suites:
        for judge in scores.judges:
            if told := _told(suite, judge):
                print(f"{suite.name}, judged by {judge}: {', '.join(told)}")
    if scores.task:
        print(
            f"{scores.task.name} ({scores.task.rule}): accuracy {_rate(scores.task.accuracy)}{_unparsable(scores.task)}"
        )
    for result in scores.utility:
        print(_utility(result))
    print(f"Scores: {out / 'scores.json'}")


def _told(suite: SuiteScores, judge: str) -> list[str]:
    """Return what a judge says of a suite; what it does not tell is left out, what it could not read is counted."""
    refused, attack = suite.refusal_rate.get(judge), suite.attack_success_rate.get(judge)
    rated, unjudged = suite.harmfulness.get(judge), suite.unjudged.get(judge, 0)
    told = [f"refused {_rate(refused)}"] if refused else []
    told += [f"attack success {_rate(attack)}"] if attack else []
    told += [f"harmfulness {rated.value:.2f} [{rated.low:.2f}, {rated.high:.2f}]"] if rated else []
    return told + ([f"{unjudged} of {suite.count} unjudged"] if unjudged else [])


def _utility(result: UtilityResult) -> str:
    chosen = "" if result.filter == "none" else f" ({result.filter})"
    error = "" if result.standard_error is None else f" ± {result.standard_error:.3f}"
    return f"lm-eval {result.task}: {result.metric}{chosen} {result.value:.3f}{error} of {result.count}"


def _unparsable(task: TaskScores) -> str:
    return f", {task.unparsable} of {task.accuracy.count} answers could not be read" if task.unparsable else ""


def _rate(rate: RateEstimate) -> str:
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.count}"
