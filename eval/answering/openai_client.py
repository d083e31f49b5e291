"""A served model behind the OpenAI-compatible chat API: where it is and how it is asked.

The client repeats what may pass (429, 5xx, timeouts, lost connections) after growing pauses and
gives up on the rest at once, with the server's own words. The API key is sent and never shown.
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
TOP_LOGPROBS = 20  # the most that servers grant by default
FIXED = (
    *("model", "messages", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "n", "stream"),
)
PIXELS = "mm_processor_kwargs"
PASSING = (408, 425, 429)  # and everything from 500 on
UNAUTHORIZED = (401, 403)
CONNECT_SECONDS = 20.0
LONGEST_PAUSE = 600.0  # seconds, whatever a server asks for
QUOTED = 300  # characters of a server's message


class EndpointError(ValueError):
    """A server that refuses, or cannot be used."""


class _Passing(Exception):
    """What may be over at the next try."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds that the server asks for


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served and how it is asked."""

    url: str  # up to /v1
    model: str  # its name there
    fields: Mapping[str, Any]  # of every request, beside model, messages and max_tokens
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8  # requests under way at once
    timeout: float = 600.0  # seconds for one request, waiting in the server's queue included
    retries: int = 6
    first_pause: float = 1.0  # seconds before the first retry; doubled for each one after


def base_url(text: str) -> str:
    """The API's base address, `.../v1`, from what a user gives for it.

    Raises:
        ValueError: no http address, or one that carries a password or a query.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not quoted: it is stored and shown, and this may be a secret.
        raise ValueError(
            "an endpoint's address may hold no user, password or query; give an API key in the "
            "environment instead (--api-key-env)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint {text!r} is no address; give one like http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def read_api_key(variable: str | None) -> str | None:
    """The API key from the environment; None reads the customary variable, if it is set.

    Raises:
        ValueError: the named variable is not set, or holds what no header can.
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
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields of every request: greedy, without penalty, with log-probabilities.

    A penalty of 1.0 is sent because servers else take that of the model's generation_config.

    Args:
        seed: sent along; greedy answers do not depend on it.
        min_pixels: smallest image area, as vLLM's `mm_processor_kwargs`; None leaves it out.
        max_pixels: largest image area.
        extra: further fields; null (None) leaves one of ours out.

    Raises:
        ValueError: `extra` would change what is measured, or states the pixels twice.
    """
    extra = dict(extra or {})
    if fixed := [name for name in FIXED if name in extra]:
        raise ValueError(
            f"{fixed[0]!r} cannot be set: an evaluation decides it; further fields may be any "
            f"but {', '.join(FIXED)}"
        )
    ours: dict[str, Any] = {
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": seed,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if pixels := {name: value for name, value in bounds.items() if value is not None}:
        given = extra.pop(PIXELS, None) or {}
        if twice := [name for name in pixels if name in given]:
            raise ValueError(f"{twice[0]} is given twice, once in {PIXELS}; give it once")
        ours[PIXELS] = {**given, **pixels}
    fields = {name: value for name, value in {**ours, **extra}.items() if value is not None}
    if not fields.get("logprobs"):
        fields.pop("top_logprobs", None)  # servers refuse the one without the other
    return fields


class ChatClient:
    """Asks one endpoint; to be used within one event loop.

    Args:
        endpoint: where and how.
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
        """Drop all connections."""
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]] | None:
        """What the server says it serves; None where it does not say.

        Raises:
            EndpointError: nothing answers, or the key is refused.
        """
        url = f"{self._endpoint.url}/models"
        try:
            response = await self._http.get(url, timeout=CONNECT_SECONDS)
        except httpx2.RequestError as error:
            raise EndpointError(
                f"nothing answers at {url} ({_named(error)}); start the server or correct "
                "the endpoint's address"
            ) from error
        if response.status_code in UNAUTHORIZED:
            raise self._refusal(response)
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
    ) -> object:
        """The body of the reply to one conversation.

        Args:
            messages: in the chat form.
            max_tokens: cap on the answer.
            pixels: bounds of the pictures' area, beside what the endpoint's fields say.

        Raises:
            EndpointError: the server refuses, or still does not answer after all retries.
        """
        asked = {"model": self._endpoint.model, "messages": messages, "max_tokens": max_tokens}
        fields = {**asked, **self._endpoint.fields}
        if pixels:
            fields[PIXELS] = {**fields.get(PIXELS, {}), **pixels}
        body = json.dumps(fields).encode()
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_Passing),
                stop=stop_after_attempt(1 + self._endpoint.retries),
                wait=self._pause,
                reraise=True,
            ):
                with attempt:
                    return await self._once(body)
        except _Passing as error:
            raise EndpointError(
                f"{self._endpoint.url} failed {1 + self._endpoint.retries} times, at last: "
                f"{error}; go on with the same command when it is back"
            ) from error
        raise AssertionError("the loop above returns or raises")

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Passing) and error.pause is not None:
            return min(error.pause, LONGEST_PAUSE)
        return self._backoff(state)

    async def _once(self, body: bytes) -> object:
        try:
            response = await self._http.post(
                f"{self._endpoint.url}/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
        except httpx2.RequestError as error:
            raise _Passing(_named(error)) from error
        status = response.status_code
        if status in PASSING or status >= 500:
            said = f"HTTP {status}: {self._quoted(response)}"
            raise _Passing(said, retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise self._refusal(response)
        try:
            reply = response.json()
        except ValueError as error:
            raise _Passing(f"its reply is no JSON: {self._quoted(response)}") from error
        if isinstance(reply, dict) and reply.get("error"):
            raise self._refusal(response)
        return reply

    def _refusal(self, response: httpx2.Response) -> EndpointError:
        message = self._quoted(response)
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

    def _quoted(self, response: httpx2.Response) -> str:
        """What the server says, in one line and without the key that it may repeat."""
        text = " ".join(error_message(response.text).split())
        if self._endpoint.api_key:
            text = text.replace(self._endpoint.api_key, "***")
        return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def error_message(text: str) -> str:
    """The message in an error's body, whichever of the customary forms it has."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    for key in ("error", "message", "detail"):
        found = body.get(key) if isinstance(body, dict) else None
        if isinstance(found, dict) and "message" in found:
            found = found["message"]
        if found:
            return found if isinstance(found, str) else json.dumps(found)
    return text


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or a date."""
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


def _named(error: httpx2.RequestError) -> str:
    """The error's kind and, where it has one, its message: a timeout's is empty."""
    return ": ".join(filter(None, [type(error).__name__, str(error)]))
