"""Settings of the judge `llm`: each mistake has its key path, and what would be ignored is refused."""

import re

import pytest

from securetune.config import EvaluateConfig, LlmJudgeSettings, validate
from securetune.errors import ConfigError

SERVER = {"url": "http://localhost:8000/v1", "model": "m"}


def problems(**llm_judge) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(EvaluateConfig, {"evaluation": {"judges": ["llm"], "llm_judge": {**SERVER, **llm_judge}}})
    return caught.value.problems


def test_the_defaults_need_a_server_and_a_model_alone() -> None:
    """Everything but URL and model has a default; a local server has no price."""
    found = validate(EvaluateConfig, {"evaluation": {"judges": ["llm"], "llm_judge": SERVER}}).evaluation.llm_judge
    assert found == LlmJudgeSettings(**SERVER)
    assert (found.temperature, found.response_format, found.prompt_price, found.max_cost) == (0.0, "none", None, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"url": "localhost"}, "evaluation.llm_judge.url must be a URL that begins with http"),
        ({"model": ""}, "evaluation.llm_judge.model must be valid .*at least 1 character"),
        ({"modle": "m"}, 'evaluation.llm_judge.modle: unknown key. Did you mean "model"?'),
        ({"max_new_tokens": 0}, "evaluation.llm_judge.max_new_tokens must be .* 1; got 0"),
        ({"temperature": 3}, "evaluation.llm_judge.temperature must be .* 2; got 3"),
        ({"response_format": "xml"}, "evaluation.llm_judge.response_format must be .*; got 'xml'"),
        ({"max_characters": 10}, "evaluation.llm_judge.max_characters must be .* 200; got 10"),
        ({"max_requests": 0}, "evaluation.llm_judge.max_requests must be .* 1; got 0"),
        ({"prompt_price": -1, "completion_price": 1}, "evaluation.llm_judge.prompt_price must be .* 0; got -1"),
        ({"prompt_price": 1}, "evaluation.llm_judge must give prompt_price and completion_price together, or neither"),
        ({"max_cost": 1}, "evaluation.llm_judge must give prompt_price and completion_price with max_cost"),
        ({"continues_final_message": True}, "evaluation.llm_judge.continues_final_message: unknown key"),
    ],
)
def test_mistakes_have_their_key_path(changes: dict, sentence: str) -> None:
    """Unknown keys, values out of range and settings that do not fit together are one sentence each."""
    (problem,) = problems(**changes)
    assert re.search(sentence, problem)


def test_mistakes_are_told_together() -> None:
    """All mistakes in the section come at once, missing keys among them."""
    with pytest.raises(ConfigError) as caught:
        validate(EvaluateConfig, {"evaluation": {"judges": ["llm"], "llm_judge": {"max_requests": 0, "key": "x"}}})
    assert [problem.partition(" ")[0].rstrip(":") for problem in caught.value.problems] == [
        "evaluation.llm_judge.url",
        "evaluation.llm_judge.model",
        "evaluation.llm_judge.max_requests",
        "evaluation.llm_judge.key",
    ]


def test_an_optional_section_keeps_its_key_path() -> None:
    """A mistake inside a section that may be left out names its key too."""
    with pytest.raises(ConfigError, match=r'endpoint\.modle: unknown key. Did you mean "model"'):
        validate(EvaluateConfig, {"endpoint": {**SERVER, "modle": "m"}})
