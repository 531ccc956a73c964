"""The judge `llm` at work: answers go to a server, and a verdict is handed on as soon as those before it are there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from securetune.artifacts import Verdict, sha256_json
from securetune.config import EvaluationSettings, LlmJudgeSettings
from securetune.errors import ConfigError, RunError
from securetune.evaluation.endpoint import API_KEY_VARIABLES, EndpointClient, api_key, endpoint_host
from securetune.evaluation.endpoint_messages import ChatRequest, Completion, Failure
from securetune.evaluation.judged_texts import EMPTY_ANSWER, in_order, readable, unparsable
from securetune.evaluation.judges import AnswerToJudge, Judge, JudgeWithSettings, register_judge
from securetune.evaluation.llm_judge.cost import Cost, cost_of, cost_sentence, require_within_limits
from securetune.evaluation.llm_judge.prompt import FORM, RUBRIC_VERSION, Case, make_case
from securetune.evaluation.llm_judge.verdict import MIN_ATTACK_SUCCESS, read_verdict
from securetune.evaluation.suites import behavior_of
from securetune.untrusted_text import without_control_characters

NAME = "llm"
JUDGE_KEY_VARIABLE = "SECURETUNE_JUDGE_API_KEY"

_WINDOW = 8
"""Answers under way together, as a multiple of the requests at a time: verdicts are handed on in order, so this is what
a kill can lose while one request hangs, and the more there are, the less often all wait for the last one of them."""

_REFUSED_STATUSES = (400, 413, 422)
_TELLS = (
    "harmfulness from 1 to 5 (after Qi et al., arXiv 2310.03693, section 3, in words of our own), XSTest's classes of "
    f"compliance (arXiv 2308.01263) and coherence; an attack succeeded from {MIN_ATTACK_SUCCESS} on"
)


class LlmJudging:
    """Judges answers with a model on a server.

    Args:
        settings: The server, and how it is asked.

    Raises:
        ConfigError: If the API key in the environment cannot be used.
    """

    def __init__(self, settings: LlmJudgeSettings) -> None:
        self._settings = settings
        self._who = without_control_characters(f"{settings.model} at {endpoint_host(settings)}")
        self._begun = Cost(0, 0, 0, 0.0)
        api_key(key_variables())

    @property
    def description(self) -> str:
        """What it is and what it tells, in one sentence."""
        return f"LLM judge {self._who}, rubric {RUBRIC_VERSION}: {_TELLS}."

    @property
    def fingerprint(self) -> str:
        """Hash of everything that a verdict depends on, besides the answer."""
        asked = {"url", "model", "max_new_tokens", "temperature", "response_format", "system_message", "max_characters"}
        content = self._settings.model_dump(mode="json", include=asked)
        return sha256_json([content, RUBRIC_VERSION, FORM, MIN_ATTACK_SUCCESS])

    def estimate(self, answers: Sequence[AnswerToJudge]) -> str | None:
        """Say what judging all these answers will cost, or None if none of them needs a request.

        Raises:
            ConfigError: If that is above a limit.
        """
        cost = self._cost(answers)
        require_within_limits(cost, self._settings)
        return cost_sentence(cost, self._who) if cost.requests else None

    def judge_all(self, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict | None]:
        """Yield one verdict an answer, in order; None where the server gave none.

        Raises:
            ConfigError: Before anything is sent, if the cost of all that this judge was given is above a limit.
            RunError: After the last one, if some have no verdict; it says why.
        """
        begun = self._begun.plus(self._cost(answers))
        require_within_limits(begun, self._settings)
        self._begun = begun
        missing, reason = 0, ""
        window = _WINDOW * self._settings.concurrency
        with EndpointClient(self._settings, key_variables()) as client:
            for start in range(0, len(answers), window):
                for found in self._judge_window(client, answers[start : start + window]):
                    if isinstance(found, Failure):
                        missing, reason = missing + 1, found.message
                    yield None if isinstance(found, Failure) else found
        if missing:
            raise RunError(
                f"judge {NAME}: {missing} of {len(answers)} answers have no verdict, the last because: {reason}. The "
                "same command asks again for them."
            )

    def _judge_window(self, client: EndpointClient, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict | Failure]:
        cases = self._cases(answers)
        places = list(cases)
        requests = [self._request(cases[place]) for place in places]
        results = client.complete_many(requests) if requests else iter(())
        known = {place: EMPTY_ANSWER for place in range(len(answers)) if place not in cases}
        judged = ((places[index], self._read(cases[places[index]], result)) for index, result in results)
        yield from in_order(len(answers), known, judged)

    def _read(self, case: Case, result: Completion | Failure) -> Verdict | Failure:
        if isinstance(result, Completion):
            is_whole = result.finish_reason != "length"
            return read_verdict(result.text, case.number) if is_whole else unparsable(result.text)
        if self._settings.refused_is_unjudged and result.status in _REFUSED_STATUSES:
            return unparsable(f"(the server refused it) {result.message}")
        return result

    def _cases(self, answers: Sequence[AnswerToJudge]) -> Mapping[int, Case]:
        """Return the case of each answer, by its place; an empty one needs no judge."""
        return {place: self._case(each) for place, each in enumerate(answers) if readable(each.answer)}

    def _case(self, each: AnswerToJudge) -> Case:
        settings = self._settings
        return make_case(behavior_of(each.prompt), each.answer, settings.max_characters, settings.system_message)

    def _request(self, case: Case) -> ChatRequest:
        settings = self._settings
        form = settings.response_format
        extra = {} if form == "none" else {"response_format": {"type": form}}
        return ChatRequest(case.messages, settings.max_new_tokens, settings.temperature, extra)

    def _cost(self, answers: Sequence[AnswerToJudge]) -> Cost:
        cases = (self._case(each) for each in answers if readable(each.answer))
        return cost_of((case.messages for case in cases), self._settings)


def key_variables() -> tuple[str, ...]:
    """Return where the API key may be. A variable of the judge's own decides, also if it is empty.

    Otherwise the key of the service that answers would be sent to a judge that needs none.
    """
    return (JUDGE_KEY_VARIABLE,) if JUDGE_KEY_VARIABLE in os.environ else API_KEY_VARIABLES


def open_llm_judge(location: str | None, settings: EvaluationSettings) -> Judge:
    """Make the judge that an evaluation's settings describe.

    Raises:
        ConfigError: If they name no server, or the API key cannot be used.
    """
    if settings.llm_judge is None:
        raise ConfigError(
            f'judge "{NAME}" needs a server and a model. Give --set evaluation.llm_judge.url=http://localhost:8000/v1 '
            "and --set evaluation.llm_judge.model=NAME."
        )
    judging = LlmJudging(settings.llm_judge)
    return Judge(
        NAME, judging.description, judging.judge_all, fingerprint=judging.fingerprint, estimate=judging.estimate
    )


def unused_sentence(settings: EvaluationSettings) -> str | None:
    """Say that a server was given which nobody would ask, or return None if that is not so."""
    if settings.llm_judge is None or NAME in settings.judges:
        return None
    return f'evaluation.llm_judge is given, but "{NAME}" is not among the judges. Give --judge {NAME}, or leave it out.'


register_judge(
    JudgeWithSettings(
        NAME,
        f"Any instruction-following model on an OpenAI-compatible server (evaluation.llm_judge): {_TELLS}.",
        open_llm_judge,
    )
)
