"""Saved answers judged by a model on a server: it dies, it refuses single answers, it costs more than is allowed."""

import json
import re
from pathlib import Path

import pytest
from judged_folder import ANSWER, COUNT, NotedJudge, evaluated, registered, suite_files
from local_server import LocalServer, status

from securetune.errors import InputError, RunError
from securetune.evaluation import judge_saved_responses


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECURETUNE_JUDGE_API_KEY", "SECURETUNE_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    evaluated(tmp_path / "out", suite_files(tmp_path), ["keywords-qi"])
    return tmp_path / "out"


def judging(body: dict) -> str:
    text = body["messages"][-1]["content"]
    case = re.search(r"=== BEGIN ANSWER (\w+) ===", text)[1]
    rating, compliance = (5, "full") if ANSWER in text else (1, "refusal")
    return json.dumps({"case": case, "reason": "-", "rating": rating, "compliance": compliance, "coherent": True})


def settings(server: LocalServer, **changes: object) -> dict[str, dict]:
    quick = {"first_wait_seconds": 0.01, "max_wait_seconds": 0.1, "max_retries": 0, "concurrency": 1}
    return {"llm_judge": {"url": server.url, "model": "judge-1", **quick, **changes}}


def test_a_server_that_dies_is_asked_about_the_rest_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says how many verdicts are missing; after that no answer is sent twice, and each has its own verdict."""
    with LocalServer(judging) as server:
        server.die_after(5)
        with pytest.raises(
            RunError, match=r"11 of 16 verdicts are missing \(11 by llm\), the last because: judge llm: "
        ):
            judge_saved_responses(out, ["llm"], settings=settings(server, max_failures=1))
        assert "judge llm: 16 requests to judge-1 at" in capsys.readouterr().err
        server.start()
        server.bodies.clear()
        scores = judge_saved_responses(out, ["llm"], settings=settings(server))
        assert len(server.bodies) == 11
        assert "judge llm: 11 requests" in capsys.readouterr().err
        assert scores.suites[0].harmfulness["llm"].value == 3.0
        assert scores.suites[1].refusal_rate["llm"].value == 0.5
        (attacks,) = [each for each in scores.agreement if each.question == "attack_succeeded"]
        assert (attacks.answers.kappa, attacks.answers.count) == (1.0, COUNT)
        server.bodies.clear()
        judge_saved_responses(out, ["llm"])  # the settings are those of before
        assert server.bodies == []
        judge_saved_responses(out, ["llm"], settings={"llm_judge": {"model": "judge-2"}})
        assert {body["model"] for body in server.bodies} == {"judge-2"}
        assert len(server.bodies) == 2 * COUNT


def test_single_answers_that_a_server_refuses_keep_no_suite_waiting(out: Path) -> None:
    """The judge goes on to the next suite where some of the answers fail, and only these are asked for again."""
    with LocalServer(judging, [status(400, "content filter")]) as server:
        with pytest.raises(RunError, match=r"1 of 16 verdicts are missing .*HTTP status 400: content filter"):
            judge_saved_responses(out, ["llm"], settings=settings(server))
        assert len(server.bodies) == 2 * COUNT
        server.bodies.clear()
        judge_saved_responses(out, ["llm"], settings=settings(server))
        assert len(server.bodies) == 1


def test_a_cost_above_the_limit_stops_every_judge(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, and the judge before it is not asked either."""
    noted = NotedJudge()
    registered(monkeypatch, noted)
    with LocalServer(judging) as server:
        with pytest.raises(InputError, match="max_requests"):
            judge_saved_responses(out, ["noted", "llm"], settings=settings(server, max_requests=15))
        assert (server.bodies, noted.asked) == ([], [])


def test_settings_of_a_judge_that_is_not_asked_are_refused(out: Path) -> None:
    """They would do nothing; and those of a judge that is dropped go with it."""
    with LocalServer(judging) as server:
        with pytest.raises(InputError, match=r"evaluation\.llm_judge: is for the judge llm\. Give --judge llm too"):
            judge_saved_responses(out, ["refusal-rules"], settings=settings(server))
        assert (
            judge_saved_responses(out, ["llm"], settings=settings(server)).settings["llm_judge"]["model"] == "judge-1"
        )
        added = judge_saved_responses(out, ["refusal-rules"])
        assert added.settings["judges"] == ["keywords-qi", "llm", "refusal-rules"]
        assert added.settings["llm_judge"]["model"] == "judge-1"
        alone = judge_saved_responses(out, ["refusal-rules"], only=True)
        assert (alone.settings["judges"], alone.settings["llm_judge"]) == (["refusal-rules"], None)
        with pytest.raises(InputError, match='judge "llm" needs a server and a model'):
            judge_saved_responses(out, ["llm"])
