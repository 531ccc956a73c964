"""Settings of servers: the one that answers prompts, and the one whose model judges answers."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from securetune.config.base import NOT_SHOWN, PositiveInt, Settings

Price = Annotated[float, Field(ge=0.0)]


class ServerSettings(Settings):
    """A server that speaks OpenAI's chat-completions protocol, as vLLM, SGLang, llama.cpp and most services do.

    The API key has no setting: it is read from the environment, so that it can end up in no file.

    Attributes:
        url: Base URL up to the version, such as `http://localhost:8000/v1`; without user name, password or query.
        model: Name under which the server offers the model.
        timeout_seconds: Time for one attempt in all (> 0). 120: a long answer from a busy server.
        max_retries: Attempts after the first (≥ 0) where another may help: statuses 408, 409, 425, 429 and 5xx,
            time-outs, broken connections and replies that are no completions. 5: with the waits below half a minute,
            in which a server restarts behind a proxy.
        first_wait_seconds: Wait before the second attempt (> 0), doubled for each further one, of which a random share
            of up to a half is left out.
        max_wait_seconds: Longest wait (> 0). A server that asks for more by `Retry-After` is not waited for: the
            request has failed.
        concurrency: Requests under way at a time. 8: keeps a batching server busy, and is below the limits of most
            services.
        requests_per_minute: Most requests a minute, retries included; None: no limit but the concurrency.
        max_failures: Requests that may fail for good before the rest is not sent. 20: more is no accident, and each
            costs `max_retries` waits.
        max_tokens_field: What the server calls the longest answer; some services take `max_completion_tokens` alone.
    """

    url: str
    model: str = Field(min_length=1)
    timeout_seconds: float = Field(default=120.0, gt=0.0)
    max_retries: int = Field(default=5, ge=0)
    first_wait_seconds: float = Field(default=1.0, gt=0.0)
    max_wait_seconds: float = Field(default=60.0, gt=0.0)
    concurrency: PositiveInt = 8
    requests_per_minute: PositiveInt | None = None
    max_failures: PositiveInt = 20
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str) -> str:
        """Refuse what could hold a secret without showing it, since the URL is written into every result."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise PydanticCustomError(NOT_SHOWN, "must be a URL; what was got cannot be read as one") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError(
                NOT_SHOWN,
                "must have no user name, password, query or fragment. Give the API key in the environment variable "
                "SECURETUNE_API_KEY.",
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("must be a URL that begins with http:// or https://, such as http://localhost:8000/v1")
        return url.rstrip("/")


class EndpointSettings(ServerSettings):
    """The server that answers the prompts of an evaluation.

    Its API key is that of the environment variable `SECURETUNE_API_KEY`, else `OPENAI_API_KEY`. Without either, none is
    sent.

    Attributes:
        continues_final_message: The server continues an assistant message at the end of the prompt if it is sent
            `continue_final_message`, as vLLM and SGLang do. Off: most servers begin a new turn, so prompts that end so
            are refused.
    """

    continues_final_message: bool = False


class LlmJudgeSettings(ServerSettings):
    """The judge `llm`: any instruction-following model on a server, and how it is asked.

    Its API key is that of the environment variable `SECURETUNE_JUDGE_API_KEY`, so that it may be another service than
    the one that answers; empty, none is sent. If it is not set, the key is found as for `endpoint`.

    Attributes:
        max_new_tokens: Longest reply, in tokens. 512: the verdict and a sentence of reason take about 100. A model that
            thinks before it answers needs more; a reply that is cut off is no verdict.
        temperature: In [0, 2]. 0: the same answer should get the same verdict. None leaves the field out, for models
            that refuse it.
        response_format: `json_object` asks the server to let the model write nothing but a JSON object; `none` leaves
            the field out, because some servers refuse it, and JSON is found in the midst of other words too.
        system_message: Give the instructions as a system message. Off, for models whose chat template has none: they
            open the user's message then.
        max_characters: Longest request, and longest answer, that the judge is shown (at least 200); of a longer one the
            middle is left out, with a mark. 16,000: some 4,000 tokens, far more than answers of the default length.
        prompt_price: Of a million prompt tokens (≥ 0), in any currency; None: not known.
        completion_price: Of a million tokens of reply, in the same currency; None: not known.
        max_cost: Nothing is sent if the estimated cost is above this, in the same currency; needs both prices. None:
            no limit.
        max_requests: Nothing is sent if more requests than this are needed. None: no limit.
        refused_is_unjudged: Count an answer as unjudged if the server refuses to look at it (statuses 400, 413, 422),
            as services with a content filter do. Off: like every other failure, that is no verdict, and the next start
            asks again; a mistake in these settings looks the same.
    """

    max_new_tokens: PositiveInt = 512
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = 0.0
    response_format: Literal["none", "json_object"] = "none"
    system_message: bool = True
    max_characters: int = Field(default=16_000, ge=200)
    prompt_price: Price | None = None
    completion_price: Price | None = None
    max_cost: Price | None = None
    max_requests: PositiveInt | None = None
    refused_is_unjudged: bool = False

    @model_validator(mode="after")
    def _cost_is_known(self) -> LlmJudgeSettings:
        prices = (self.prompt_price, self.completion_price)
        if (self.prompt_price is None) != (self.completion_price is None):
            raise PydanticCustomError(NOT_SHOWN, "must give prompt_price and completion_price together, or neither")
        if self.max_cost is not None and None in prices:
            raise PydanticCustomError(NOT_SHOWN, "must give prompt_price and completion_price with max_cost")
        return self
