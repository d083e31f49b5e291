"""A chat server on loopback with scripted replies, which records the requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from vlpress.eval.answering.openai_messages import chat_messages
from vlpress.eval.tasks.task import Item, Task

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """Reply to one request."""

    content: object  # JSON value, or the bytes themselves
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds
    hang_up: bool = False  # close the connection without a response


def completion(text: str | None, finish: str = "stop", **more: Any) -> Body:
    """Make the body of a chat completion."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}


def usage(prompt: int, answer: int) -> Body:
    """Make the token counts of a chat completion."""
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": answer}}


def table(
    tasks: Iterable[Task], say: Callable[[Item], str], prompt_tokens: int = 40
) -> Callable[[Body], Reply]:
    """Answer each of the tasks' items, identified by its messages, with `say`."""
    items = {json.dumps(chat_messages(item)): item for task in tasks for item in task.items}

    def answer(body: Body) -> Reply:
        text = say(items[json.dumps(body["messages"])])
        return Reply(completion(text, **usage(prompt_tokens, len(text.split()) + 1)))

    return answer


class ChatServer:
    """Serves `/v1/models` and `/v1/chat/completions` until the `with` block ends.

    Args:
        answer: maps the body of a request to its reply, for requests without a scripted one.
        script: replies to the first requests, in the order of their arrival; None uses `answer`.
        models: entries of `/v1/models`; None replies with 404.
    """

    def __init__(
        self,
        answer: Callable[[Body], Reply] = lambda _: Reply(completion("A")),
        script: Iterable[Reply | None] = (),
        models: list[Body] | None = None,
    ) -> None:
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.answer, self.script, self.models = answer, list(script), models
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply(self, body: Body, headers: Mapping[str, str]) -> Reply:
        """Record a request, choose its reply and wait for the delay of that reply."""
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(headers))
            scripted = self.script.pop(0) if self.script else None
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        reply = scripted or self.answer(body)
        time.sleep(reply.delay)
        with self._lock:
            self._at_once -= 1
        return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != "/v1/models" or chat.models is None:
                    self._send(Reply({"detail": "Not Found"}, 404))
                    return
                self._send(Reply({"object": "list", "data": chat.models}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    self._send(Reply({"detail": "Not Found"}, 404))
                    return
                self._send(chat.reply(body, dict(self.headers)))

            def _send(self, reply: Reply) -> None:
                if reply.hang_up:
                    self.close_connection = True
                    return
                raw = reply.content
                data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
