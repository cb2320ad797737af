"""`gleaner listen`: a small door on the loopback interface through which a labeling tool wakes a tick.

    POST /wake with `Authorization: Bearer SECRET` or `X-Gleaner-Secret: SECRET`   ->  202, a tick begins soon
    GET /health                                                                    ->  200

What is posted is counted and thrown away: a wake says "look", and the tick asks the labeling tool itself. So a request
that was forged, repeated or lost changes nothing. HTTP is read by h11; everything here is limits around it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import h11

from tasks.errors import BadInput, GleanerError

SECRET = "GLEANER_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
SHORTEST = 16  # characters of a secret
LARGEST = 64 * 1024  # bytes of a body, which nobody reads
HEADER = 16 * 1024  # bytes of a header
SECONDS = 5.0  # for a whole request
CONNECTIONS = 128  # at a time; more are told to come later
LINGER = 2**20  # bytes that are thrown away after an early answer, so that the sender can read it


@dataclass(frozen=True)
class Door:
    """Who may knock, and what a knock does."""

    secret: bytes
    wake: Callable[[], None]
    loopback: bool = True  # then the Host header must name it: no web page may reach in by a name of its own
    seconds: float = SECONDS


@dataclass(frozen=True)
class Request:
    """A request's first line and the headers that count."""

    method: str
    path: str
    host: str
    secret: bytes


def secret() -> bytes:
    """The secret of the environment. Raises BadInput when it is missing or too short."""
    value = os.environ.get(SECRET, "").strip()
    if len(value) < SHORTEST:
        wrong = f"has {len(value)} characters" if value else "is not set"
        raise BadInput(
            f"{SECRET} {wrong}: at least {SHORTEST} are needed. Make one: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return value.encode()


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def judge(request: Request, door: Door) -> HTTPStatus | None:
    """The answer that needs no body, None for a wake whose body is still to come. Pure but for the door."""
    if door.loopback and not is_loopback(_name(request.host)):
        return HTTPStatus.MISDIRECTED_REQUEST
    if request.path == "/health":
        return HTTPStatus.OK if request.method in ("GET", "HEAD") else HTTPStatus.METHOD_NOT_ALLOWED
    if request.path != "/wake":
        return HTTPStatus.NOT_FOUND
    if request.method != "POST":
        return HTTPStatus.METHOD_NOT_ALLOWED
    return None if hmac.compare_digest(request.secret, door.secret) else HTTPStatus.UNAUTHORIZED


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _read(event: h11.Request) -> Request:
    headers = {name.decode("ascii"): value for name, value in event.headers}
    kind, _, token = headers.get("authorization", b"").partition(b" ")
    given = token.strip() if kind.lower() == b"bearer" else headers.get("x-gleaner-secret", b"")
    path = event.target.decode("latin-1").partition("?")[0]
    return Request(event.method.decode("ascii"), path, headers.get("host", b"").decode("latin-1"), given)


async def answer(connection: h11.Connection, reader: asyncio.StreamReader, door: Door) -> HTTPStatus:
    """Read one request and say what it comes to; a wake is woken here, once its body has come to its end."""
    event = await _next(connection, reader)
    if not isinstance(event, h11.Request):
        return HTTPStatus.BAD_REQUEST
    early = judge(_read(event), door)
    if early is not None:
        return early
    size = 0
    while isinstance(event := await _next(connection, reader), h11.Data):
        size += len(event.data)
        if size > LARGEST:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if not isinstance(event, h11.EndOfMessage):
        return HTTPStatus.BAD_REQUEST
    door.wake()
    return HTTPStatus.ACCEPTED


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Event | type[h11.PAUSED]:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(LARGEST))
    return event  # type: ignore[return-value]


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, door: Door, *, full: bool) -> None:
    """One connection: one request, one answer, closed."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER)
    status = HTTPStatus.SERVICE_UNAVAILABLE
    try:
        async with asyncio.timeout(door.seconds):
            if not full:
                status = await answer(connection, reader, door)
    except TimeoutError:
        status = HTTPStatus.REQUEST_TIMEOUT
    except h11.RemoteProtocolError as error:
        status = HTTPStatus(error.error_status_hint)
    except ConnectionError:
        return
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(2):
            await _say(writer, status)
            await _linger(reader)


async def _say(writer: asyncio.StreamWriter, status: HTTPStatus) -> None:
    text = f"{status.value} {status.phrase}\n".encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\n"
    writer.write(head.encode() + b"connection: close\r\n\r\n" + text)
    await writer.drain()
    writer.write_eof()


async def _linger(reader: asyncio.StreamReader) -> None:
    """Throw away what still comes: closing over unread bytes would reset the connection, and the answer with it."""
    size = 0
    while size < LINGER and (more := await reader.read(LARGEST)):
        size += len(more)


async def serve(host: str, port: int, door: Door, ready: Callable[[int], None], end: asyncio.Event) -> None:
    """Serve until `end` is set; `ready` is told the port. Raises GleanerError when it is taken."""
    open_now: set[asyncio.StreamWriter] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        try:
            await serve_one(reader, writer, door, full=len(open_now) > CONNECTIONS)
        finally:
            open_now.discard(writer)
            writer.close()

    try:
        server = await asyncio.start_server(one, host, port, limit=LARGEST, backlog=1024)
    except OSError as error:
        raise GleanerError(f"cannot listen at {host}:{port}: {error.strerror or error}. Another --port?") from None
    async with server:
        ready(server.sockets[0].getsockname()[1])
        await end.wait()


def stamp(line: str) -> None:
    """One line of log, with the time."""
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}", flush=True)
