"""Real servers on 127.0.0.1 that alerts are sent to: a webhook and a mail sink, well or with a fault."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import UnthreadedController

SECRET = "-".join(["s3cr3t", "t0ken"])  # in addresses; workspaces hold a copy of this file


@dataclass
class Receiver:
    """A webhook: what it got, and how it answers."""

    port: int = 0
    status: int = 200
    echo: bool = False  # repeats path and headers in its answer, as debugging servers do
    location: str = ""  # redirects there
    hang: threading.Event | None = None  # answers only when this is set
    drip: bool = False  # a byte now and then, for ever
    got: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Its address, with secrets in it."""
        return f"json://ann:{SECRET}@127.0.0.1:{self.port}/{SECRET}/in?-key={SECRET}"


@contextmanager
def webhook(  # noqa: C901 - one handler, several faults
    port: int = 0, **faults: Any
) -> Iterator[Receiver]:
    """A webhook on a free port."""
    receiver = Receiver(**faults)
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.paths.append(self.path)
            receiver.asked.set()
            if receiver.hang is not None:
                receiver.hang.wait(60)
            if receiver.status < 300:
                receiver.got.append(body)
            self.answer()

        def answer(self) -> None:
            self.send_response(receiver.status)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.end_headers()
            if receiver.echo:
                self.wfile.write(f"no: {self.path} {self.headers} error={SECRET}".encode())
            while receiver.drip and not stopped.wait(0.2):
                self.wfile.write(b".")

        def do_GET(self) -> None:
            receiver.paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed

    with Server(("127.0.0.1", port), Handler) as server:
        receiver.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield receiver
        finally:
            stopped.set()
            if receiver.hang is not None:
                receiver.hang.set()
            server.shutdown()
            thread.join()


@dataclass
class Mailbox:
    """A mail server that keeps what it gets; with `refusal` it answers that instead."""

    port: int = 0
    refusal: str = ""
    got: list[EmailMessage] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address: plain SMTP, from and to somebody."""
        return f"mailto://127.0.0.1:{self.port}?from=gleaner@example.org&to=team@example.org"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """aiosmtpd calls this with a mail."""
        if self.refusal:
            return self.refusal
        self.got.append(message_from_bytes(envelope.content, EmailMessage, policy=policy.default))
        return "250 OK"


@contextmanager
def mail_server(refusal: str = "") -> Iterator[Mailbox]:
    """A mail server on a free port."""
    box = Mailbox(refusal=refusal)
    loop = asyncio.new_event_loop()
    controller = UnthreadedController(box, hostname="127.0.0.1", port=0, loop=loop)
    controller.begin()  # type: ignore[no-untyped-call]
    box.port = controller.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield box
    finally:
        closed = controller.finalize()  # type: ignore[no-untyped-call]
        asyncio.run_coroutine_threadsafe(closed, loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def text_of(mail: EmailMessage) -> str:
    """The plain text of a mail."""
    part = mail.get_body(("plain",))
    assert part is not None
    return str(part.get_content())
