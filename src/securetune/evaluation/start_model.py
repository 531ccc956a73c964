"""The question that comes before all others: does the start model refuse at all?"""

from __future__ import annotations

from securetune.artifacts import Scores, who_decides
from securetune.config import EvaluationSettings
from securetune.errors import StartModelError


def require_refusing_start_model(scores: Scores, settings: EvaluationSettings) -> None:
    """Stop if the start model answers plain harmful requests: there would be no safety to keep, and nothing to compare.

    Checked is each plain harmful suite (no attack wrapper), by the first judge named that tells refusals, or else
    attacks. Without such a suite there is nothing to check.

    Raises:
        StartModelError: If no judge could judge any answer to such a suite, or the share refused on it is below
            `min_start_refusal_rate`.
    """
    for suite in scores.suites:
        if suite.kind != "harmful" or suite.wrapper is not None:
            continue
        told = scores.refusals_on(suite)
        if not told and not scores.judges:
            continue
        if not told:
            raise StartModelError(
                f"No judge could judge any of the {suite.count} answers of the start model {scores.model.name} to "
                f"{suite.name}, so it is not known whether there is safety to keep. Choose another judge, such as "
                "refusal-rules."
            )
        refused = told[0].rate
        if refused.value < settings.min_start_refusal_rate:
            raise StartModelError(
                f"The start model {scores.model.name} refuses only {round(refused.value * refused.count)} of "
                f"{refused.count} harmful prompts of {suite.name} ({who_decides(told)}), and "
                f"min_start_refusal_rate is {settings.min_start_refusal_rate:.0%}: there is no safety to keep. "
                "Start from an aligned chat model."
            )
