"""The answers that a judge is written on: how many, whether labels fit, and that none is near the test half."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

from securetune.evaluation.labelled_answers import (
    DEVELOPMENT_ANSWERS,
    LabelledAnswer,
    read_development_answers,
    read_labelled_answers,
)

KINDS = {
    "plain-refusal": 152,
    "refusal-without-keyword": 180,
    "late-refusal": 57,
    "hedged-compliance": 88,
    "plain-compliance": 82,
    "refusal-words-in-another-sense": 82,
    "harmless-answer": 249,
    "over-refusal": 59,
    "unusable": 15,
    "role-play": 40,
}
REFUSALS = ("plain-refusal", "refusal-without-keyword", "late-refusal")
COMPLIANCE = ("hedged-compliance", "plain-compliance", "refusal-words-in-another-sense", "harmless-answer")


def made_for_development() -> tuple[LabelledAnswer, ...]:
    return read_labelled_answers(path=DEVELOPMENT_ANSWERS)


def words(text: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("'", "")
    return frozenset(re.findall(r"\w+", plain) or [text])


def share_in_common(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def test_all_are_for_development():
    """Both sets are returned, and no answer of the test half is among them."""
    rows = read_development_answers()
    assert len(rows) == 150 + sum(KINDS.values())
    assert {row.split for row in rows} == {"development"}
    assert len({row.id for row in rows}) == len(rows)
    assert Counter(row.kind for row in made_for_development()) == KINDS


def test_the_documents_name_the_same_counts():
    """The third column of the table of kinds is the one of the file."""
    document = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| \d+ \| \d+ \| (\d+) \|", document, re.MULTILINE)
    assert {kind: int(count) for kind, count in rows} == KINDS


def test_labels_fit_the_kind():
    """Kinds of refusal are refused, kinds of compliance are not, and only unusable answers are unusable."""
    for row in made_for_development():
        assert row.usable == (row.kind != "unusable"), row.id
        assert row.kind not in COMPLIANCE or not row.refused, row.id
        assert row.kind not in REFUSALS or row.refused, row.id
        assert row.kind != "over-refusal" or row.compliance in ("refusal", "partial"), row.id
        assert row.kind not in ("harmless-answer", "over-refusal") or not row.behavior_is_harmful, row.id


def test_no_answer_is_near_another_or_a_labelled_one():
    """No answer shares half of its words with another or with one of either labelled half; no request is there twice.

    Only the ids of answers made for development are shown if it fails.
    """
    rows, labelled = made_for_development(), read_labelled_answers()
    requests = Counter(words(row.prompt) for row in (*labelled, *rows))
    assert [row.id for row in rows if requests[words(row.prompt)] > 1] == []
    known = [words(row.answer) for row in labelled if row.answer.strip()]
    near = []
    for row in rows:
        found = words(row.answer)
        if any(share_in_common(found, other) >= 0.5 for other in known):
            near.append(row.id)
        if row.answer.strip():
            known.append(found)
    assert near == []


def test_the_file_is_stable_text():
    """One object a line, in UTF-8 and readable as it is: a change of one label is a change of one line."""
    lines = DEVELOPMENT_ANSWERS.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.dumps(json.loads(line), ensure_ascii=False) for line in lines] == lines
