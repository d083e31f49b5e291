from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion
from tenacity import AsyncRetrying

from vlpress.eval.answering import openai_client
from vlpress.eval.answering.openai_client import (
    ChatClient,
    Endpoint,
    EndpointError,
    find_error_message,
    normalize_url,
    parse_retry_after,
    read_api_key,
    request_fields,
)

HI = [{"role": "user", "content": "Hi"}]
KEY = "sk-a-secret-key"


def ask(server: ChatServer, **options: Any) -> object:
    """Put one question to a server, without long pauses."""
    fields = options.pop("fields", request_fields())
    found = {"retries": 3, "first_pause": 0.01, "timeout": 5.0} | options
    endpoint = Endpoint(server.url, "m", fields, **found)

    async def work() -> object:
        client = ChatClient(endpoint)
        try:
            return await client.complete(HI, 7)
        finally:
            await client.close()

    return asyncio.run(work())


def models(url: str, api_key: str | None = None) -> list[dict[str, Any]] | None:
    async def work() -> list[dict[str, Any]] | None:
        client = ChatClient(Endpoint(url, "m", {}, api_key=api_key))
        try:
            return await client.models()
        finally:
            await client.close()

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("h:8000", "http://h:8000/v1"),
        ("https://h/v1", "https://h/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/team/openai/v1", "https://h/team/openai/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_address_ends_in_v1(given: str, found: str) -> None:
    assert normalize_url(given) == found


@pytest.mark.parametrize("given", ["", "ftp://h/v1", "http:///v1", "http://"])
def test_invalid_addresses_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        normalize_url(given)


@pytest.mark.parametrize(
    "given", [f"http://me:{KEY}@h/v1", f"http://h/v1?key={KEY}", f"http://h/#{KEY}"]
)
def test_address_with_a_secret_is_refused_without_quoting_it(given: str) -> None:
    with pytest.raises(ValueError, match="--api-key-env") as caught:
        normalize_url(given)
    assert KEY not in str(caught.value)


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert read_api_key(None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "usual")
    monkeypatch.setenv("MINE", f" {KEY}\n")
    assert read_api_key(None) == "usual"
    assert read_api_key("MINE") == KEY
    with pytest.raises(ValueError, match="NONE_SUCH"):
        read_api_key("NONE_SUCH")
    monkeypatch.setenv("MINE", f"{KEY}\r\nX-Other: 1")
    with pytest.raises(ValueError, match="MINE") as caught:
        read_api_key("MINE")
    assert KEY not in str(caught.value)


def test_requests_are_greedy_and_without_penalty() -> None:
    assert request_fields(seed=3) == {
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 3,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_null_leaves_a_field_out_and_others_are_added() -> None:
    fields = request_fields(extra={"repetition_penalty": None, "seed": None, "top_k": -1})
    assert set(fields) == {"temperature", "top_p", "logprobs", "top_logprobs", "top_k"}
    assert "top_logprobs" not in request_fields(extra={"logprobs": None})
    assert "top_logprobs" not in request_fields(extra={"logprobs": False})
    assert request_fields(extra={"top_logprobs": 5})["top_logprobs"] == 5


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens", "temperature", "n", "stream"])
def test_fields_of_the_evaluation_cannot_be_set(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'"):
        request_fields(extra={name: None})


def test_pixel_bounds_go_where_vllm_reads_them() -> None:
    assert "mm_processor_kwargs" not in request_fields()
    fields = request_fields(max_pixels=1_003_520, extra={"mm_processor_kwargs": {"fps": 1}})
    assert fields["mm_processor_kwargs"] == {"fps": 1, "max_pixels": 1_003_520}
    with pytest.raises(ValueError, match="min_pixels"):
        request_fields(min_pixels=1, extra={"mm_processor_kwargs": {"min_pixels": 2}})


def test_request_has_all_fields() -> None:
    with ChatServer() as server:
        assert ask(server, api_key=KEY) == completion("A")
    [body], [headers] = server.bodies, server.headers
    assert body == {"model": "m", "messages": HI, "max_tokens": 7, **request_fields()}
    assert headers["Authorization"] == f"Bearer {KEY}"
    with ChatServer() as server:
        ask(server)
    assert "Authorization" not in server.headers[0]


PASSING = [
    Reply({"error": {"message": "slow down"}}, 429),
    Reply("overloaded", 503),
    Reply({"error": "oops"}, 500),
    Reply({"detail": "timed out"}, 408),
    Reply(b"<html>bad gateway</html>", 502),
    Reply(b"<html>not the API</html>"),
    Reply(b'{"choices": [{"mess'),
    Reply(b"", hang_up=True),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.status} {fault.content!r}")
def test_transient_failures_are_retried(fault: Reply) -> None:
    with ChatServer(script=[fault, fault]) as server:
        assert ask(server) == completion("A")
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


def test_timeout_is_tried_again() -> None:
    with ChatServer(script=[Reply(completion("late"), delay=0.6)]) as server:
        assert ask(server, timeout=0.2) == completion("A")
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Reply({"error": {"message": "slow\ndown"}}, 429), "HTTP 429: slow down;"),
        (Reply(b"<html>x", 200), "JSON: <html>x;"),
        (Reply(b"", hang_up=True), "RemoteProtocolError: "),
    ],
)
def test_repeated_failures_end_in_one_line(fault: Reply, message: str) -> None:
    with ChatServer(lambda _: fault) as server, pytest.raises(EndpointError) as caught:
        ask(server)
    assert len(server.bodies) == 4
    assert "/v1 failed 4 times" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between the attempts, recorded instead of slept."""
    seconds: list[float] = []

    async def sleep(duration: float) -> None:
        seconds.append(duration)

    monkeypatch.setattr(openai_client, "AsyncRetrying", partial(AsyncRetrying, sleep=sleep))
    return seconds


@pytest.mark.parametrize(("header", "seconds"), [("30", 30.0), ("0.3", 0.3), ("9999", 600.0)])
def test_pause_is_the_one_that_the_server_requests(
    pauses: list[float], header: str, seconds: float
) -> None:
    with ChatServer(script=[Reply("wait", 429, {"Retry-After": header})]) as server:
        ask(server)
    assert pauses == [seconds]


def test_pauses_grow(pauses: list[float]) -> None:
    with ChatServer(lambda _: Reply("down", 503)) as server, pytest.raises(EndpointError):
        ask(server, retries=4, first_pause=2.0)
    assert [2 * 2**n <= pause <= 2 * 2**n + 2 for n, pause in enumerate(pauses)] == [True] * 4


def test_pause_may_be_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_900_000_000.0
    monkeypatch.setattr(openai_client, "time", SimpleNamespace(time=lambda: now))
    assert parse_retry_after(formatdate(now + 60, usegmt=True)) == 60
    assert parse_retry_after(formatdate(now - 60, usegmt=True)) == 0
    assert [parse_retry_after(text) for text in (None, "2", "-1", "soon")] == [None, 2.0, 0.0, None]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply({"error": {"message": "The model `m` does not exist."}}, 404),
            r"/v1 .*\(HTTP 404: The model `m` does not exist\.\)$",
        ),
        (
            Reply({"detail": "Unexpected fields in the request: {'repetition_penalty'}"}, 422),
            r"request: \{'repetition_penalty'\}\).*"
            r"--endpoint-extra '\{\"repetition_penalty\": null\}'$",
        ),
        (
            Reply({"message": "top_logprobs must be <= 5, logprobs is on"}, 400),
            r"--endpoint-extra '\{\"logprobs\": null, \"top_logprobs\": null\}'$",
        ),
        (
            Reply({"error": {"message": "temperature is odd"}}, 400),
            r"\(HTTP 400: temperature is odd\)$",
        ),
        (
            Reply({"error": {"message": f"Incorrect API key provided: {KEY}."}}, 401),
            r"provided: \*\*\*\.\).*\$OPENAI_API_KEY.*--api-key-env$",
        ),
        (Reply({"error": {"message": "in a 200"}}), r"\(HTTP 200: in a 200\)$"),
        (Reply(b"x" * 1000, 413), r"\(HTTP 413: x{300}\.\.\.\)$"),
        (Reply("", 302, {"Location": "http://127.0.0.1:1/"}), r"\(HTTP 302: "),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_refusal_quotes_the_server_and_is_not_repeated(reply: Reply, message: str) -> None:
    with ChatServer(lambda _: reply) as server, pytest.raises(EndpointError, match=message) as got:
        ask(server, api_key=KEY)
    assert len(server.bodies) == 1
    assert KEY not in str(got.value) and "\n" not in str(got.value)


def test_key_is_not_shown() -> None:
    assert KEY not in repr(Endpoint("http://h/v1", "m", {}, api_key=KEY))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"error": {"message": "a", "code": 1}}', "a"),
        ('{"error": "b"}', "b"),
        ('{"object": "error", "message": "c"}', "c"),
        ('{"detail": [{"loc": ["body"], "msg": "d"}]}', '[{"loc": ["body"], "msg": "d"}]'),
        ('{"other": 1}', '{"other": 1}'),
        ("[1]", "[1]"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_message_of_an_error_in_any_customary_form(text: str, message: str) -> None:
    assert find_error_message(text) == message


def test_models_that_a_server_offers() -> None:
    with ChatServer(models=[{"id": "m", "owned_by": "vllm"}, {"object": "odd"}]) as server:
        assert models(server.url) == [{"id": "m", "owned_by": "vllm"}]
    with ChatServer(models=None) as server:
        assert models(server.url) is None
        closed = server.url
    with pytest.raises(EndpointError, match=r"/v1/models \(ConnectError: "):
        models(closed)


def test_refused_key_is_found_at_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(models=[]) as server:
        handler: Any = server._server.RequestHandlerClass
        denied = Reply({"error": {"message": f"no key {KEY}"}}, 403)
        monkeypatch.setattr(handler, "do_GET", lambda self: self._send(denied))
        with pytest.raises(EndpointError, match=r"HTTP 403: no key \*\*\*\)"):
            models(server.url, KEY)
