"""A client for any OpenAI-compatible chat-completions endpoint that loses nothing: every request ends in a value.

The sending runs on an event loop in a thread of its own, where a request can be cut off after a time in all, however
slowly its bytes come; callers see an ordinary iterator.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from securetune.config import ServerSettings
from securetune.errors import ConfigError
from securetune.evaluation.endpoint_messages import (
    ChatRequest,
    Completion,
    Failure,
    error_text,
    one_line,
    read_reply,
    retry_after_seconds,
)

API_KEY_VARIABLES = ("SECURETUNE_API_KEY", "OPENAI_API_KEY")
"""Where the API key comes from: the first that is set. There is no setting for it, so that no file can hold it."""

_RETRIED_STATUSES = {408, 409, 425, 429}
_HOPELESS_STATUSES = {401, 404}  # a wrong key, path or model: every other request would fail alike
_Result = tuple[int, Completion | Failure]


class EndpointClient:
    """Sends chat requests to one endpoint, some at a time, and gives each one's completion or failure.

    Example:
        >>> settings = ServerSettings(url="http://localhost:8000/v1", model="my-model")
        >>> request = ChatRequest([{"role": "user", "content": "Hello"}], max_tokens=16)
        >>> with EndpointClient(settings) as client:  # doctest: +SKIP
        ...     for index, result in client.complete_many([request]):
        ...         print(index, result)

    Args:
        settings: The server.
        key_variables: Environment variables that may hold the API key; the first that is set does.

    Raises:
        ConfigError: If the API key in the environment cannot be sent in a header.
    """

    def __init__(self, settings: ServerSettings, key_variables: Sequence[str] = API_KEY_VARIABLES) -> None:
        self.settings = settings
        self._key = api_key(key_variables)
        self._pace = _Pace(settings.requests_per_minute)
        self._failures = 0
        self._given_up: str | None = None
        self._running: set[_Background] = set()

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Break off everything under way; iterators over it end."""
        for background in list(self._running):
            background.cancel()

    def complete(self, request: ChatRequest) -> Completion | Failure:
        """Send one request and wait for what becomes of it."""
        return next(result for _, result in self.complete_many([request]))

    def complete_many(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Completion | Failure]]:
        """Send requests, and yield each one's index and result as it comes, not in the order of the requests.

        Closing the iterator breaks off what is under way. Once `max_failures` requests of this client have failed, or
        one shows that all would, those that are left are not sent; each comes as a `Failure` of kind `not_sent`.
        """
        results: SimpleQueue[_Result | None] = SimpleQueue()
        background = _Background(self._send_all(list(requests), results.put), lambda: results.put(None))
        self._running.add(background)
        try:
            while (result := results.get()) is not None:
                yield result
        finally:
            background.cancel()
            self._running.discard(background)
        background.raise_error()

    async def _send_all(self, requests: list[ChatRequest], put: Callable[[_Result], None]) -> None:
        from openai import AsyncOpenAI  # half a second to import, and only endpoints need it

        waiting = iter(enumerate(requests))
        async with AsyncOpenAI(
            base_url=self.settings.url,
            api_key=self._key or "none",
            max_retries=0,  # `_attempts` does it, with a pause for all at once
            timeout=self.settings.timeout_seconds,
        ) as sender:

            async def work() -> None:
                for index, request in waiting:  # shared by all workers; nothing is awaited between its steps
                    put((index, await self._complete(sender, request)))

            workers = min(self.settings.concurrency, len(requests))
            await asyncio.gather(*(work() for _ in range(workers)))

    async def _complete(self, sender: Any, request: ChatRequest) -> Completion | Failure:
        if self._given_up is not None:
            return Failure("not_sent", self._given_up, attempts=0)
        result = await self._attempts(sender, request)
        if isinstance(result, Failure):
            self._count(result)
        return result

    def _count(self, failure: Failure) -> None:
        self._failures += failure.kind != "not_sent"
        if failure.status in _HOPELESS_STATUSES:
            self._given_up = f"not sent: every request would fail ({failure.message})"
        elif self._failures >= self.settings.max_failures:
            self._given_up = f"not sent: {self._failures} requests had failed, the last because: {failure.message}"

    async def _attempts(self, sender: Any, request: ChatRequest) -> Completion | Failure:
        """Send until there is a completion, a failure that would come again, or no attempt left."""
        result: Completion | Failure = Failure("not_sent", "not sent", attempts=0)
        for attempt in range(1, self.settings.max_retries + 2):
            await self._pace.wait()
            if self._given_up is not None and attempt > 1:
                break
            result = replace(await self._send(sender, request), attempts=attempt)
            if isinstance(result, Completion) or not _is_worth_retrying(result) or attempt > self.settings.max_retries:
                return result
            asked = result.retry_after_seconds or 0.0
            if asked > self.settings.max_wait_seconds:
                return replace(result, message=f"{result.message} (asked to wait {asked:.0f} s)")
            if asked:
                self._pace.pause(asked)
            await asyncio.sleep(max(asked, self._backoff_seconds(attempt)))
        return result

    def _backoff_seconds(self, attempt: int) -> float:
        """Double the wait at each attempt, less up to half of it, so that requests do not come back all at once."""
        longest = min(self.settings.max_wait_seconds, self.settings.first_wait_seconds * 2.0 ** min(attempt - 1, 60))
        return longest * random.uniform(0.5, 1.0)

    async def _send(self, sender: Any, request: ChatRequest) -> Completion | Failure:
        import openai

        seconds = self.settings.timeout_seconds
        try:
            # The sender's own limit is for each read: a server that sends a byte a second would never reach it.
            async with asyncio.timeout(seconds):
                reply = await sender.chat.completions.with_raw_response.create(**self._fields(request))
                return read_reply(reply.text, self._key)
        except openai.APIStatusError as error:
            return self._failed_status(error.status_code, error.response)
        except (TimeoutError, openai.APITimeoutError):
            return Failure("timeout", f"no complete reply within {seconds:g} s")
        except openai.APIConnectionError as error:
            return Failure("connection", self._told("the connection failed", error.__cause__ or error))
        except Exception as error:  # such as text that is not Unicode, which no server will ever be sent
            broken_off = type(error).__module__.partition(".")[0] in ("httpx2", "httpcore2")
            return Failure("connection" if broken_off else "unsendable", self._told("not sent", error))

    def _fields(self, request: ChatRequest) -> dict[str, Any]:
        from openai import omit

        fields: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [dict(message) for message in request.messages],
            self.settings.max_tokens_field: request.max_tokens,
            "extra_body": dict(request.extra) or None,
            # A server without keys gets no header, rather than a made-up key.
            "extra_headers": {} if self._key else {"Authorization": omit},
        }
        return fields if request.temperature is None else {**fields, "temperature": request.temperature}

    def _failed_status(self, status: int, response: Any) -> Failure:
        message = one_line(error_text(response.text), self._key)
        asked = retry_after_seconds(response.headers.get("retry-after"))
        return Failure("status", f"HTTP status {status}: {message}", status, retry_after_seconds=asked)

    def _told(self, what: str, error: BaseException) -> str:
        return f"{what} ({one_line(f'{type(error).__name__}: {error}', self._key)})"


def api_key(variables: Sequence[str] = API_KEY_VARIABLES) -> str | None:
    """Return the API key of the environment, or None.

    Args:
        variables: Where it may be; the first that is set and not empty counts.

    Raises:
        ConfigError: If it holds characters that no header can carry; the message does not show it.
    """
    for variable in variables:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{variable}: must be printable ASCII characters. Was it copied with something else?")
        if key:
            return key
    return None


def endpoint_host(settings: ServerSettings) -> str:
    """Return the host and port of an endpoint, for reports."""
    return urlsplit(settings.url).netloc


def _is_worth_retrying(failure: Failure) -> bool:
    if failure.kind == "status":
        return failure.status in _RETRIED_STATUSES or (failure.status or 0) >= 500
    return failure.kind not in ("unsendable", "not_sent")


class _Pace:
    """When the next request may start: some time after the last one, and after any pause that the server asked for."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self._seconds_between = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Wait for one's turn."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._seconds_between
        await asyncio.sleep(turn - now)

    def pause(self, seconds: float) -> None:
        """Let no request start for a while."""
        self._next = max(self._next, time.monotonic() + seconds)


class _Background:
    """A coroutine running on an event loop in a thread of its own, until it is done or cancelled."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], on_end: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._error: BaseException | None = None
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Break it off, and wait until that is done."""
        self._began.wait()
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just closed by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def raise_error(self) -> None:
        """Raise what the coroutine raised, if it did."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # handed to the thread that waits for results
            self._error = error
        finally:
            self._began.set()
            self._on_end()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._coroutine)
        self._began.set()
        await self._task
