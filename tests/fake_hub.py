"""A model hub on loopback that keeps what is uploaded in memory: the HTTP and LFS uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

COMMIT = "c" * 40
TOKEN = "hf_loopback"


class FakeHub:
    """Serves one user, `me`, until the `with` block ends; requests need the token `TOKEN`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """Committed files by name."""
        self.objects: dict[str, bytes] = {}
        """LFS objects by sha256."""
        self.uploads: Counter[str] = Counter()
        """Number of times that each of them was sent."""
        self.repositories: list[dict[str, Any]] = []
        """Bodies of the requests that create a repository."""
        self.commits: list[str] = []
        """Revision of each commit."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_PUT(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path).path
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if not allowed and not path.startswith("/objects/"):
                    return self._send(401, {"error": "Invalid credentials"})
                self._send(*hub.answer(path, body))

            def _send(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answer one request; returns the status and the JSON of the response."""
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/objects/"):
            name = path.rpartition("/")[2]
            self.objects[name] = body
            self.uploads[name] += 1
            return 200, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self._lfs(entry) for entry in json.loads(body)["objects"]]}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [_mode(entry["path"]) for entry in files]}
        if "/commit/" in path:
            return self._commit(path.rpartition("/")[2], body)
        return 404, {"error": f"no such page: {path}"}

    def _create(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = any(entry["name"] == request["name"] for entry in self.repositories)
        self.repositories.append(request)
        content = {"url": f"{self.url}/{request.get('organization', 'me')}/{request['name']}"}
        return (409, {**content, "error": "exists already"}) if known else (200, content)

    def _lfs(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["oid"] in self.objects:
            return entry
        upload = {"href": f"{self.url}/objects/{entry['oid']}", "header": {}}
        return {**entry, "actions": {"upload": upload}}

    def _commit(self, revision: str, body: bytes) -> tuple[int, dict[str, Any]]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                data = self.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                self.files[value["path"]] = data
        self.commits.append(revision)
        url = f"{self.url}/me/model/commit/{COMMIT}"
        return 200, {"commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}
