"""The endpoint client against a real local server, good and bad."""

import json
import logging
import threading
import time
from email.utils import formatdate

import pytest
from local_server import LocalServer, completion, dropped, garbage, slow, status, trickling, truncated

from securetune.config import EndpointSettings, validate
from securetune.errors import ConfigError
from securetune.evaluation.endpoint import EndpointClient, endpoint_host
from securetune.evaluation.endpoint_messages import (
    ChatRequest,
    Completion,
    Failure,
    one_line,
    read_reply,
    retry_after_seconds,
)

KEY = "sk-very/secret+key-0123456789"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECURETUNE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def settings(server: LocalServer, **changes) -> EndpointSettings:
    quick = {"first_wait_seconds": 0.01, "max_wait_seconds": 2.0, "timeout_seconds": 5.0, "max_retries": 2}
    return EndpointSettings(url=server.url, model="tested", **{**quick, **changes})


def requests(count: int = 1) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": f"prompt {index}"}], 32) for index in range(count)]


def results(client: EndpointClient, count: int = 1) -> list[Completion | Failure]:
    found = dict(client.complete_many(requests(count)))
    assert sorted(found) == list(range(count))
    return [found[index] for index in range(count)]


def only_result(server: LocalServer, **changes) -> Completion | Failure:
    with EndpointClient(settings(server, **changes)) as client:
        return results(client)[0]


def test_every_request_gets_its_own_answer() -> None:
    """Each index comes once, with the answer to its own request, and the request's fields arrive as they were given."""
    with LocalServer() as server, EndpointClient(settings(server)) as client:
        found = results(client, 20)
        extra = client.complete(ChatRequest([{"role": "user", "content": "x"}], 5, None, {"seed": 3}))
    assert [result.text for result in found] == [f"You said: prompt {index}" for index in range(20)]
    assert found[0] == Completion("You said: prompt 0", "stop", 7, 4)
    first = next(body for body in server.bodies if body["messages"][0]["content"] == "prompt 0")
    expected = {"model": "tested", "messages": requests()[0].messages, "max_tokens": 32, "temperature": 0.0}
    assert first == expected
    assert isinstance(extra, Completion)
    assert server.bodies[-1] == {
        "model": "tested",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 5,
        "seed": 3,
    }


def test_the_field_of_the_longest_answer_can_be_named() -> None:
    """Services that take only `max_completion_tokens` get that."""
    with LocalServer() as server:
        only_result(server, max_tokens_field="max_completion_tokens")
    assert server.bodies[0]["max_completion_tokens"] == 32
    assert "max_tokens" not in server.bodies[0]


def test_answers_come_as_they_are_ready() -> None:
    """A quick answer does not wait for a slow one that was asked for earlier."""
    with LocalServer(faults=[slow(0.5)]) as server, EndpointClient(settings(server, concurrency=2)) as client:
        order = [index for index, _ in client.complete_many(requests(4))]
    assert order[-1] in (0, 1)
    assert order != [0, 1, 2, 3]


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503),
        garbage(b"<html>gateway</html>"),
        garbage(b""),
        garbage(b"\xff\xfe\x00"),
        garbage(b'{"choices": []}'),
        truncated(),
        dropped(),
    ],
    ids=["429", "500", "503", "html", "nothing", "bytes", "no choices", "truncated", "dropped"],
)
def test_what_may_pass_is_tried_again(fault) -> None:
    """After any fault that another attempt may cure, the answer comes with the number of attempts."""
    with LocalServer(faults=[fault]) as server:
        result = only_result(server)
    assert isinstance(result, Completion)
    assert (result.text, result.attempts) == ("You said: prompt 0", 2)


@pytest.mark.parametrize(
    ("fault", "kind", "code", "said"),
    [
        (status(500, "out of\nmemory"), "status", 500, "HTTP status 500: out of memory"),
        (garbage(b"no JSON"), "malformed", None, "the reply is not JSON: no JSON"),
        (garbage(b'{"choices": []}'), "empty", None, "the reply holds no choices"),
        (garbage(b'{"choices": ["x"]}'), "malformed", None, "first choice holds no message: x"),
        (garbage(b'{"choices": [{"message": {"content": 3}}]}'), "malformed", None, "content is not text: 3"),
        (garbage(b'{"error": {"message": "overloaded"}}'), "malformed", None, "reports an error: overloaded"),
        (truncated(), "connection", None, "the connection failed"),
        (dropped(), "connection", None, "the connection failed"),
    ],
    ids=["500", "text", "no choices", "no message", "number", "error inside", "truncated", "dropped"],
)
def test_a_failure_is_a_value(fault, kind: str, code: int | None, said: str) -> None:
    """When the last attempt has failed, the result says what happened, in one line, and how often it was tried."""
    with LocalServer(faults=[fault] * 3) as server:
        result = only_result(server)
    assert isinstance(result, Failure)
    assert (result.kind, result.status, result.attempts) == (kind, code, 3)
    assert said in result.message
    assert "\n" not in result.message


@pytest.mark.parametrize("fault", [slow(60), trickling(60)], ids=["silent", "a byte at a time"])
def test_the_time_limit_is_for_the_whole_attempt(fault) -> None:
    """A server that is silent, or sends a byte now and then, is given up after the time limit."""
    began = time.monotonic()
    with LocalServer(faults=[fault]) as server:
        result = only_result(server, timeout_seconds=0.3, max_retries=0)
        assert time.monotonic() - began < 30
    assert isinstance(result, Failure)
    assert (result.kind, result.message) == ("timeout", "no complete reply within 0.3 s")


def test_a_refused_request_is_not_sent_again() -> None:
    """An error that is the request's own fault comes at once, and the others go on."""
    with (
        LocalServer(faults=[status(400, "too long")]) as server,
        EndpointClient(settings(server, concurrency=1)) as client,
    ):
        found = results(client, 3)
    assert found[0] == Failure("status", "HTTP status 400: too long", 400, 1)
    assert all(isinstance(result, Completion) for result in found[1:])


@pytest.mark.parametrize("code", [401, 404])
def test_what_would_fail_for_all_stops_all(code: int) -> None:
    """With a wrong key or model name one request is sent, and the others say why they were not."""
    with (
        LocalServer(faults=[status(code, "no")] * 9) as server,
        EndpointClient(settings(server, concurrency=1)) as client,
    ):
        found = results(client, 5)
    assert len(server.bodies) == 1
    assert [result.kind for result in found] == ["status", *["not_sent"] * 4]
    assert f"every request would fail (HTTP status {code}: no)" in found[-1].message


def test_too_many_failures_end_the_sending() -> None:
    """After `max_failures` failed requests the rest is not sent, nothing already answered is lost, none is missing."""
    with LocalServer() as server:
        server.faults.extend([slow(0), slow(0), *[status(400, "bad")] * 9])
        with EndpointClient(settings(server, concurrency=1, max_failures=3)) as client:
            found = results(client, 10)
            later = results(client, 1)
    kinds = [result.kind if isinstance(result, Failure) else "answer" for result in found]
    assert kinds == ["answer"] * 2 + ["status"] * 3 + ["not_sent"] * 5
    assert "3 requests had failed" in found[-1].message
    assert isinstance(later[0], Failure)  # the budget is the client's, not the call's


def test_retry_after_is_honoured() -> None:
    """The request is not sent again before the time that the server asked for."""
    with LocalServer(faults=[status(429, Retry_After="0.6")]) as server:
        result = only_result(server)
    assert isinstance(result, Completion)
    assert server.times[1] - server.times[0] >= 0.6


def test_a_wait_that_is_too_long_is_a_failure() -> None:
    """A server that asks for a longer wait than allowed is not asked again."""
    with LocalServer(faults=[status(429, "daily limit", Retry_After="3600")]) as server:
        result = only_result(server)
    assert isinstance(result, Failure)
    assert result.message == "HTTP status 429: daily limit (asked to wait 3600 s)"
    assert len(server.bodies) == 1


def test_retry_after_takes_seconds_and_dates() -> None:
    """Both forms of the header are read; anything else counts as absent."""
    assert retry_after_seconds("7") == 7.0
    assert retry_after_seconds(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert retry_after_seconds(formatdate(time.time() - 100, usegmt=True)) == 0.0
    for text in (None, "", "soon", "nan", "inf", "99999999999999999999 Jan"):
        assert retry_after_seconds(text) is None


def test_concurrency_and_rate_are_limited() -> None:
    """No more requests are under way than allowed, and they begin no faster than the rate allows."""
    with LocalServer(faults=[slow(0.05)] * 12) as server, EndpointClient(settings(server, concurrency=3)) as client:
        results(client, 12)
    assert server.most_at_once == 3
    with LocalServer() as server, EndpointClient(settings(server, requests_per_minute=600)) as client:
        results(client, 5)
    assert server.times[-1] - server.times[0] >= 0.3


def test_closing_breaks_off_what_is_under_way() -> None:
    """Leaving the iterator, or closing the client from elsewhere, ends at once and leaves no thread behind."""
    began = time.monotonic()
    with LocalServer(faults=[slow(0), *[slow(60)] * 20]) as server:
        with EndpointClient(settings(server, concurrency=2)) as client:
            next(iter(client.complete_many(requests(9))))
            threading.Timer(0.2, client.close).start()
            assert len(list(client.complete_many(requests(9)))) < 9
        assert time.monotonic() - began < 30
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


def test_no_request_is_no_work() -> None:
    """An empty list gives an empty iterator."""
    with LocalServer() as server, EndpointClient(settings(server)) as client:
        assert list(client.complete_many([])) == []


def test_a_request_that_cannot_be_sent_is_a_failure_of_its_own() -> None:
    """Text that is not Unicode spoils its own request alone."""
    with LocalServer() as server, EndpointClient(settings(server)) as client:
        bad = ChatRequest([{"role": "user", "content": "\ud800"}], 8)
        found = dict(client.complete_many([bad, *requests(1)]))
    assert isinstance(found[0], Failure)
    assert (found[0].kind, found[0].attempts) == ("unsendable", 1)
    assert isinstance(found[1], Completion)


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key reaches the server; a server that sends it back puts it into no message, log, dump or text form."""
    monkeypatch.setenv("SECURETUNE_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "the other one")
    caplog.set_level(logging.DEBUG)
    echoes = [status(400, f"bad key {KEY} in http://h/?key={KEY}"), garbage(f"<p>{KEY}".encode())]
    echoes.append(garbage(json.dumps({"choices": [{"message": {"content": [KEY]}}]}).encode()))
    echoes.append(status(401, f"Incorrect API key provided: {KEY}"))
    with LocalServer(faults=echoes) as server:
        client = EndpointClient(settings(server, concurrency=1, max_retries=0))
        found = results(client, 5)
    shown = [repr(client), repr(vars(client.settings)), client.settings.model_dump_json(), repr(found)]
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert "[API key]" in found[0].message
    for text in (*shown, caplog.text, *capsys.readouterr()):
        assert KEY not in text
        assert "sk-very" not in text


def test_a_key_is_cut_nowhere_in_half() -> None:
    """A key at the place where a long message is cut is hidden before the cut, in every form it may come in."""
    for form in (KEY, "sk-very%2Fsecret%2Bkey-0123456789"):
        assert "secret" not in one_line("x" * 290 + form, KEY)
    assert one_line("a\x1b[31mb\u202e\nc") == "a[31mb c"


def test_without_a_key_none_is_sent() -> None:
    """A server without keys sees no authorization at all."""
    with LocalServer() as server:
        only_result(server)
    assert "authorization" not in server.headers[0]


def test_a_key_that_no_header_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with a line break inside is an error that does not show it."""
    monkeypatch.setenv("OPENAI_API_KEY", "abc\ndef")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: must be printable ASCII") as caught:
        EndpointClient(EndpointSettings(url="http://localhost/v1", model="m"))
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [f"https://user:{KEY}@host/v1", "https://sk-secret@host/v1", f"https://host/v1?key={KEY}", f"http://h:{KEY}/"],
)
def test_a_url_that_may_hold_a_secret_is_refused_unseen(url: str) -> None:
    """A URL with a password or a query is an error that does not repeat it."""
    with pytest.raises(ConfigError, match="url must") as caught:
        validate(EndpointSettings, {"url": url, "model": "m"}, "file.yaml")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "/v1", "http://"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    """A URL must say http or https and a host."""
    with pytest.raises(ConfigError, match=r"url must be a URL that begins with http:// or https://.*; got"):
        validate(EndpointSettings, {"url": url, "model": "m"})


def test_the_host_is_named_with_its_port() -> None:
    """What reports show of a URL is its host and port; a slash at the end makes no difference."""
    found = EndpointSettings(url="http://localhost:8000/v1/", model="m")
    assert (found.url, endpoint_host(found)) == ("http://localhost:8000/v1", "localhost:8000")


def test_odd_replies_are_read() -> None:
    """Null is an empty answer, a refusal field is an answer, missing counts are unknown, no surrogate survives."""
    assert read_reply(json.dumps(completion(None, "length"))) == Completion("", "length", 7, 0)
    refusal = {"choices": [{"message": {"content": None, "refusal": "I can't."}}], "usage": {"prompt_tokens": "7"}}
    assert read_reply(json.dumps(refusal)) == Completion("I can't.", None, None, None)
    assert read_reply(json.dumps(completion("a\ud800b"))) == Completion("a?b", "stop", 7, 1)
    assert isinstance(read_reply("[" * 100_000), Failure)
