"""Where the weights come from: a logistic regression on labelled answers, one for each of the three tables.

`python benchmarks/fit_refusal_rules.py` runs it on the development answers and writes `weights.json`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.linear_model import LogisticRegression

from securetune.evaluation.labelled_answers import LabelledAnswer
from securetune.evaluation.refusal_rules.cues import Cues, request_cues
from securetune.evaluation.refusal_rules.judge import read_cues

Weights = dict[str, float]

INVERSE_REGULARIZATION = {"request": 1.0, "declines": 1.0, "evades": 0.3}
"""scikit-learn's C: smaller values pull weights to 0. `evades` has the most cues; 1.0 was no better there."""

DECIMALS = 2


def fit_weights(answers: Sequence[LabelledAnswer]) -> dict[str, Weights]:
    """Fit the weights of all cues to labelled answers.

    Args:
        answers: Answers of every kind; those of the test half must not be among them.

    Example:
        >>> from securetune.evaluation import read_development_answers
        >>> sorted(fit_weights(read_development_answers()))
        ['declines', 'evades', 'request']
    """
    request = _fit([(request_cues(row.prompt), row.behavior_is_harmful) for row in answers], "request")
    read = [(*read_cues(row.answer, row.prompt, request), row.refused) for row in answers]
    return {"request": request} | {
        way: _fit([(cues, refused) for found, cues, refused in read if found == way], way)
        for way in ("declines", "evades")
    }


def _fit(rows: Sequence[tuple[Cues, bool]], table: str) -> Weights:
    names = list(rows[0][0])
    model = LogisticRegression(C=INVERSE_REGULARIZATION[table], max_iter=10_000)
    model.fit([[cues[name] for name in names] for cues, _ in rows], [label for _, label in rows])
    fitted = {"constant": model.intercept_[0]} | dict(zip(names, model.coef_[0], strict=True))
    return {name: round(float(weight), DECIMALS) for name, weight in fitted.items()}
