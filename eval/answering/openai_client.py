"""HTTP client for the OpenAI-compatible chat API.

The client retries transient failures (429, 5xx, timeouts, lost connections) with exponential
backoff and raises all others at once, with the server's message. The API key is sent and never
shown.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

API_KEY = "OPENAI_API_KEY"  # the customary environment variable
TOP_LOGPROBS = 20  # the default maximum of servers
FIXED = (
    *("model", "messages", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "n", "stream"),
)
"""Request fields that the evaluation sets."""
SEED = "seed"
PIXELS = "mm_processor_kwargs"
"""Request field with vLLM's bounds of image areas."""
TRANSIENT = (408, 425, 429)  # and all from 500
UNAUTHORIZED = (401, 403)
CONNECT_SECONDS = 20.0
LONGEST_PAUSE = 600.0  # seconds; cap on Retry-After
QUOTED = 300  # characters of a server's message


class EndpointError(ValueError):
    """A request that the server refused or did not answer."""


class _TransientError(Exception):
    """A failure that a retry may resolve.

    Args:
        reason: description for the message.
        pause: seconds to wait as requested by the server; None: no request.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Endpoint:
    """Address of a served model and settings of requests to it."""

    url: str  # up to /v1
    model: str  # served name
    fields: Mapping[str, Any]  # of every request, in addition to model, messages and max_tokens
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8  # concurrent requests
    timeout: float = 600.0  # seconds per request, time in the server's queue included
    retries: int = 6
    first_pause: float = 1.0  # seconds before the first retry; doubled for each further one


def normalize_url(text: str) -> str:
    """Return the base address of the API, `.../v1`, from an address in any common form.

    Raises:
        ValueError: the text is not an http address, or contains a password or a query.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not quoted in the message: it may contain a secret.
        raise ValueError(
            "an endpoint's address may hold no user, password or query; give an API key in the "
            "environment instead (--api-key-env)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint {text!r} is no address; give one like http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def read_api_key(variable: str | None) -> str | None:
    """Read the API key from an environment variable; None: from `API_KEY` if it is set.

    Raises:
        ValueError: the named variable is not set, or its value cannot be in a header.
    """
    name = variable or API_KEY
    key = os.environ.get(name, "").strip()
    if not key and variable:
        raise ValueError(f"environment variable {variable} is not set; put the API key there")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"environment variable {name} holds characters that no API key has")
    return key or None


def request_fields(
    *,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the fields of every request: without penalty, with log-probabilities.

    A penalty of 1.0 is sent because servers otherwise use the one in the model's
    generation_config.

    Args:
        seed: value of the field, on which greedy answers do not depend; sampled ones have seeds of
            their own, see `ChatClient.complete`.
        temperature: 0 is greedy.
        top_p: mass of nucleus sampling.
        top_k: number of most likely tokens to sample from; 0: all, and no field is sent.
        min_pixels: smallest image area, in vLLM's `mm_processor_kwargs`; None: not sent.
        max_pixels: largest image area; None: not sent.
        extra: further fields; None as a value removes a default field.

    Raises:
        ValueError: `extra` sets a field of `FIXED`, or a value is given twice.
    """
    extra = dict(extra or {})
    if fixed := [name for name in FIXED if name in extra]:
        raise ValueError(
            f"{fixed[0]!r} cannot be set: an evaluation decides it; further fields may be any "
            f"but {', '.join(FIXED)}"
        )
    defaults: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        **({"top_k": top_k} if top_k else {}),
        "seed": seed,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }
    if top_k and "top_k" in extra:
        raise ValueError("top_k is given twice, once in further fields; give it once")
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if pixels := {name: value for name, value in bounds.items() if value is not None}:
        given = extra.pop(PIXELS, None) or {}
        if twice := [name for name in pixels if name in given]:
            raise ValueError(f"{twice[0]} is given twice, once in {PIXELS}; give it once")
        defaults[PIXELS] = {**given, **pixels}
    fields = {name: value for name, value in {**defaults, **extra}.items() if value is not None}
    if not fields.get("logprobs"):
        fields.pop("top_logprobs", None)  # servers refuse it without logprobs
    return fields


class ChatClient:
    """Client of one endpoint, for use within one event loop.

    Args:
        endpoint: address and request settings.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        key = endpoint.api_key
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(endpoint.timeout, connect=CONNECT_SECONDS, pool=None),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
        )
        pause = endpoint.first_pause
        self._backoff = wait_exponential(multiplier=pause, max=60.0) + wait_random(0.0, pause)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]] | None:
        """List the served models; None if the server does not list them.

        Raises:
            EndpointError: the address cannot be reached, or the key is refused.
        """
        url = f"{self._endpoint.url}/models"
        try:
            response = await self._http.get(url, timeout=CONNECT_SECONDS)
        except httpx2.RequestError as error:
            raise EndpointError(
                f"nothing answers at {url} ({_describe(error)}); start the server or correct "
                "the endpoint's address"
            ) from error
        if response.status_code in UNAUTHORIZED:
            raise self._make_refusal(response)
        try:
            listed = response.json()["data"]
            return [dict(entry) for entry in listed if "id" in entry]
        except (ValueError, KeyError, TypeError):
            return None

    async def complete(
        self,
        messages: list[dict[str, Any]],
        max_tokens: int,
        pixels: Mapping[str, int] | None = None,
        seed: int | None = None,
    ) -> object:
        """Request one chat completion; return the body of the reply.

        Args:
            messages: in the chat form.
            max_tokens: limit of the answer.
            pixels: bounds of the images' area, merged into those of the endpoint's fields.
            seed: of a sampled answer, in place of that of the endpoint's fields; without a seed
                there, none is sent.

        Raises:
            EndpointError: the server refuses the request, or all retries fail.
        """
        request = {"model": self._endpoint.model, "messages": messages, "max_tokens": max_tokens}
        fields = {**request, **self._endpoint.fields}
        if seed is not None and SEED in fields:
            fields[SEED] = seed
        if pixels:
            fields[PIXELS] = {**fields.get(PIXELS, {}), **pixels}
        body = json.dumps(fields).encode()
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_TransientError),
                stop=stop_after_attempt(1 + self._endpoint.retries),
                wait=self._pause,
                reraise=True,
            ):
                with attempt:
                    return await self._post(body)
        except _TransientError as error:
            raise EndpointError(
                f"{self._endpoint.url} failed {1 + self._endpoint.retries} times, at last: "
                f"{error}; repeat the command to resume when it is back"
            ) from error
        raise AssertionError("the loop above returns or raises")

    def _pause(self, state: RetryCallState) -> float:
        """Return the seconds to wait: Retry-After if the server sent it, else the backoff."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TransientError) and error.pause is not None:
            return min(error.pause, LONGEST_PAUSE)
        return self._backoff(state)

    async def _post(self, body: bytes) -> object:
        """Send one request; return the parsed reply."""
        try:
            response = await self._http.post(
                f"{self._endpoint.url}/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
        except httpx2.RequestError as error:
            raise _TransientError(_describe(error)) from error
        status = response.status_code
        if status in TRANSIENT or status >= 500:
            reason = f"HTTP {status}: {self._quote(response)}"
            raise _TransientError(reason, parse_retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise self._make_refusal(response)
        try:
            reply = response.json()
        except ValueError as error:
            raise _TransientError(f"its reply is no JSON: {self._quote(response)}") from error
        if isinstance(reply, dict) and reply.get("error"):
            raise self._make_refusal(response)
        return reply

    def _make_refusal(self, response: httpx2.Response) -> EndpointError:
        message = self._quote(response)
        optional = [name for name in self._endpoint.fields if name not in FIXED]
        named = [name for name in optional if re.search(rf"\b{re.escape(name)}\b", message)]
        hint = ""
        if response.status_code in UNAUTHORIZED:
            hint = f"; put the API key into ${API_KEY} or name its variable with --api-key-env"
        elif named and response.status_code in (400, 422):
            left_out = json.dumps(dict.fromkeys(named))
            hint = f"; leave out what it does not know with --endpoint-extra '{left_out}'"
        return EndpointError(
            f"{self._endpoint.url} refused (HTTP {response.status_code}: {message}){hint}"
        )

    def _quote(self, response: httpx2.Response) -> str:
        """Return the server's message on one line, without the key that it may contain."""
        text = " ".join(find_error_message(response.text).split())
        if self._endpoint.api_key:
            text = text.replace(self._endpoint.api_key, "***")
        return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def find_error_message(text: str) -> str:
    """Return the message in the body of an error, in any of the common forms; else the body."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    for key in ("error", "message", "detail"):
        message = body.get(key) if isinstance(body, dict) else None
        if isinstance(message, dict) and "message" in message:
            message = message["message"]
        if message:
            return message if isinstance(message, str) else json.dumps(message)
    return text


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds in a Retry-After header, a number or a date; None if it has neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _describe(error: httpx2.RequestError) -> str:
    """Return the error's type and its message, which is empty for timeouts."""
    return ": ".join(filter(None, [type(error).__name__, str(error)]))
