"""How often each judge is right on the labelled answers: `python benchmarks/judges.py [--judge NAME …] [--json]`.

Without `--judge` all judges that need neither a server nor weights are measured. One with them gets its row too:

    python benchmarks/judges.py --judge llm --set evaluation.llm_judge.url=URL --set evaluation.llm_judge.model=NAME
    python benchmarks/judges.py --judge wildguard=FOLDER --judge llama-guard-3=FOLDER

Judged is whether the answer refuses, and whether an attack succeeded, each over the answers that a reader labelled. An
answer that a judge left unjudged counts as a miss, and how many it left is said beside it. The rules of `refusal-rules`
were written on the development half and on `development_answers.jsonl`; the half to look at is `test`. `--answers FILE`
measures on another file of the same form, such as that one or a user's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from securetune.artifacts import RateEstimate, Verdict
from securetune.config import EvaluateConfig, merge, parse_overrides, validate
from securetune.data.prompts import Prompt
from securetune.errors import RunError, SecuretuneError
from securetune.evaluation import LabelledAnswer, list_judges, open_judge, read_labelled_answers
from securetune.evaluation.judges import AnswerToJudge, Judge
from securetune.evaluation.labelled_answers import LABELLED_ANSWERS

PARTS = ("development", "test", "all")
OUTCOMES = ("refused", "attack_succeeded")
"""Fields that verdicts and labels both have; a judge has a row for those that it tells."""


def judge_labelled(judge: Judge, answers: Sequence[LabelledAnswer]) -> list[Verdict]:
    """Return a judge's verdicts on labelled answers, all or none.

    Raises:
        RunError: If it gave none on some of them.
    """
    given = [
        AnswerToJudge(
            Prompt(row.id, ({"role": "user", "content": row.prompt},), {}), row.answer, None if row.answer else "empty"
        )
        for row in answers
    ]
    if judge.estimate is not None and (line := judge.estimate(given)):
        print(f"judge {judge.name}: {line}", file=sys.stderr, flush=True)
    verdicts = [verdict for verdict in judge.judge_all(given) if verdict is not None]
    if len(verdicts) < len(given):
        raise RunError(f"judge {judge.name}: {len(given) - len(verdicts)} of {len(given)} answers have no verdict")
    return verdicts


def accuracy(
    verdicts: Sequence[Verdict], answers: Sequence[LabelledAnswer], outcome: str, part: str
) -> RateEstimate | None:
    """Return the share of a part's answers of which an outcome is told rightly; None if the judge never tells it."""
    told = [
        (getattr(verdict, outcome), getattr(row, outcome))
        for verdict, row in zip(verdicts, answers, strict=True)
        if part in (row.split, "all") and getattr(row, outcome) is not None
    ]
    if not told or all(found is None for found, _ in told):
        return None
    return RateEstimate.from_counts(sum(found == label for found, label in told), len(told))


def measure(judge: Judge, answers: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Measure a judge: part → accuracy of the refusals, the same under `attack_succeeded`, and the unjudged answers."""
    verdicts = judge_labelled(judge, answers)
    rates = {outcome: {part: accuracy(verdicts, answers, outcome, part) for part in PARTS} for outcome in OUTCOMES}
    unjudged = sum(verdict.unparsable is not None for verdict in verdicts)
    return {**rates["refused"], "attack_succeeded": rates["attack_succeeded"], "unjudged": unjudged}


def open_judges(names: Sequence[str], overrides: Sequence[str]) -> list[Judge]:
    """Open the judges named, or all that need no settings."""
    if not names:
        return [judge for judge in list_judges() if isinstance(judge, Judge) and not judge.required_metadata]
    content = merge(parse_overrides(overrides), {"evaluation": {"judges": list(names)}})
    settings = validate(EvaluateConfig, content).evaluation
    return [open_judge(name, settings) for name in names]


def shown(rate: RateEstimate | None) -> str:
    """Return a rate as a cell of the table."""
    return "-" if rate is None else f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print a table of each outcome, for the judges that tell it."""
    for outcome in OUTCOMES:
        found = {name: row if outcome == "refused" else row[outcome] for name, row in rows.items()}
        told = {name: row for name, row in found.items() if row["all"]}
        if told:
            print(f"{outcome}:\n| Judge | Development | Test | All |\n|---|---|---|---|")
        for name, row in told.items():
            unjudged = f" ({rows[name]['unjudged']} unjudged)" if rows[name]["unjudged"] else ""
            print(f"| `{name}`{unjudged} | {' | '.join(shown(row[part]) for part in PARTS)} |")
        print()


def as_plain(value: Any) -> Any:
    """Turn rates into what JSON holds."""
    if isinstance(value, dict):
        return {key: as_plain(inner) for key, inner in value.items()}
    return value.model_dump() if isinstance(value, RateEstimate) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or with `--json` one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="append", default=[], metavar="NAME", help="repeatable; NAME or NAME=FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="evaluation.KEY=VALUE")
    parser.add_argument("--answers", type=Path, default=LABELLED_ANSWERS, metavar="FILE", help="other labelled answers")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.set and not given.judge:
        parser.error("--set does nothing without --judge")
    try:
        judges, answers = open_judges(given.judge, given.set), read_labelled_answers(path=given.answers)
        rows = {judge.name: measure(judge, answers) for judge in judges}
    except SecuretuneError as error:
        sys.exit(f"error: {error}")
    if given.json:
        print(json.dumps(as_plain(rows)))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
