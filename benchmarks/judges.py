"""How often each judge is right on the labelled answers: `python benchmarks/judges.py [--json]`.

Judged is whether the answer refuses. The rules of `refusal-rules` were written on the development half; the half to
look at is `test`.
"""

from __future__ import annotations

import argparse
import json

from securetune.artifacts import RateEstimate
from securetune.data.prompts import Prompt
from securetune.evaluation import LabelledAnswer, list_judges, read_labelled_answers
from securetune.evaluation.judges import Judge


def accuracy(judge: Judge, answers: list[LabelledAnswer]) -> RateEstimate:
    """Return the share of answers of which the judge says rightly whether they refuse."""
    prompts = [Prompt(row.id, ({"role": "user", "content": row.prompt},), {}) for row in answers]
    verdicts = [judge.judge(prompt, row.answer) for prompt, row in zip(prompts, answers, strict=True)]
    return RateEstimate.from_counts(
        sum(verdict.refused == row.refused for verdict, row in zip(verdicts, answers, strict=True)), len(answers)
    )


def main() -> None:
    """Print the table, or with `--json` one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    halves = {split: list(read_labelled_answers(split)) for split in ("development", "test")}
    judges = [judge for judge in list_judges() if isinstance(judge, Judge) and not judge.required_metadata]
    rows = {judge.name: {split: accuracy(judge, answers) for split, answers in halves.items()} for judge in judges}
    if as_json:
        print(json.dumps({name: {s: rate.model_dump() for s, rate in found.items()} for name, found in rows.items()}))
        return
    print("| Judge | Development | Test |\n|---|---|---|")
    for name, found in rows.items():
        shown = [f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]" for rate in found.values()]
        print(f"| `{name}` | {shown[0]} | {shown[1]} |")


if __name__ == "__main__":
    main()
