"""A proxy on 127.0.0.1 that kills the server behind it at a planned request, and drops that connection.

with KillingProxy(server.url, server.kill) as proxy:
    proxy.plan = Kill("POST", r"/import$", "during", after_seconds=0.01)
"""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import httpx


@dataclass(frozen=True)
class Kill:
    """When: at the `nth` request that matches, before it is passed on, while it is worked on, or after it was carried out."""

    method: str
    path: str
    moment: str  # before | during | after
    nth: int = 1
    after_seconds: float = 0.0  # during: how long the server has had the request


class Server(Protocol):
    """What can be killed."""

    url: str

    def kill(self) -> None:
        """End it at once."""
        ...


class KillingProxy:
    """Passes on every request but the planned one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.plan: Kill | None = None
        self.killed: list[Kill] = []
        self._seen = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> KillingProxy:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def passed(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response | None:
        """The server's answer; None drops the connection."""
        kill = self._due(method, path)
        if kill is None:
            return self._forward(method, path, headers, body)
        self.killed.append(kill)
        if kill.moment == "before":
            self.server.kill()
            return None
        if kill.moment == "during":
            timer = threading.Timer(kill.after_seconds, self.server.kill)
            timer.start()
            answer = self._forward(method, path, headers, body)
            timer.join()
            return answer
        self._forward(method, path, headers, body)
        self.server.kill()
        return None

    def _due(self, method: str, path: str) -> Kill | None:
        with self._lock:
            plan = self.plan
            if plan is None or method != plan.method or not re.search(plan.path, path.partition("?")[0]):
                return None
            self._seen += 1
            if self._seen < plan.nth:
                return None
            self.plan, self._seen = None, 0
            return plan

    def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):  # it was killed meanwhile
            return httpx.request(method, self.server.url + path, headers=headers, content=body, timeout=120.0)
        return None


def _handler(proxy: KillingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            kept = {
                name: value for name, value in self.headers.items() if name.lower() in ("authorization", "content-type")
            }
            answer = proxy.passed(self.command, self.path, kept, body)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", "application/json"))
            if answer.status_code != 204:
                self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            if answer.status_code != 204:
                self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            return

    return Handler
