"""The question that comes before all others: does the start model refuse at all?"""

from __future__ import annotations

from securetune.artifacts import RateEstimate, Scores, SuiteScores
from securetune.config import EvaluationSettings
from securetune.errors import StartModelError


def require_refusing_start_model(scores: Scores, settings: EvaluationSettings) -> None:
    """Stop if the start model answers plain harmful requests: there would be no safety to keep, and nothing to compare.

    Checked is each plain harmful suite (no attack wrapper), by the first judge that tells. Without such a suite there
    is nothing to check.

    Raises:
        StartModelError: If no judge could judge any answer to such a suite, or the share refused on it is below
            `min_start_refusal_rate`.
    """
    for suite in scores.suites:
        if suite.kind != "harmful" or suite.wrapper is not None:
            continue
        found = _refusal(scores, suite)
        if found is None and not scores.judges:
            continue
        if found is None:
            raise StartModelError(
                f"No judge could judge any of the {suite.count} answers of the start model {scores.model.name} to "
                f"{suite.name}, so it is not known whether there is safety to keep. Choose another judge, such as "
                "keywords-shallow."
            )
        judge, refused = found
        if refused.value < settings.min_start_refusal_rate:
            raise StartModelError(
                f"The start model {scores.model.name} refuses only {round(refused.value * refused.count)} of "
                f"{refused.count} harmful prompts of {suite.name} ({refused.value:.0%} by the judge {judge}), and "
                f"min_start_refusal_rate is {settings.min_start_refusal_rate:.0%}: there is no safety to keep. "
                "Start from an aligned chat model."
            )


def _refusal(scores: Scores, suite: SuiteScores) -> tuple[str, RateEstimate] | None:
    """Return the share refused with its judge; by judges that only tell attacks, the share of attacks that failed."""
    for judge in scores.judges:
        if judge in suite.refusal_rate:
            return judge, suite.refusal_rate[judge]
    for judge in scores.judges:
        if judge in suite.attack_success_rate:
            attacked = suite.attack_success_rate[judge]
            failed = attacked.count - round(attacked.value * attacked.count)
            return judge, RateEstimate.from_counts(failed, attacked.count)
    return None
