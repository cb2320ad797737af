"""The door that wakes ticks, over real sockets: who is let in, what is too much, and that a storm is one wake."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.wake import Waker
from flows.webhook import CONNECTIONS, LARGEST, Door, serve
from tasks.campaign import LEDGER
from tasks.ledger import open_ledger
from tests.children import run_in_child
from tests.quick import image_folder, make_workspace, tick

SECRET = "a-secret-of-24-characters"
AUTHORIZED = f"Authorization: Bearer {SECRET}\r\n"
GLEANER = Path(sys.executable).with_name("gleaner")
SHORT = 0.5  # seconds for a request, where a test waits for their end


class Counted:
    """A door that counts its wakes, served by a thread."""

    def __init__(self, port: int, wakes: list[int]) -> None:
        self.port, self.wakes = port, wakes


@contextmanager
def door(seconds: float = 5.0, loopback: bool = True) -> Iterator[Counted]:
    """Serve until the block ends."""
    wakes: list[int] = []
    started: list[Any] = []
    up = threading.Event()

    async def run() -> None:
        end = asyncio.Event()

        def ready(port: int) -> None:
            started.extend([port, end, asyncio.get_running_loop()])
            up.set()

        await serve("127.0.0.1", 0, Door(SECRET.encode(), lambda: wakes.append(1), loopback, seconds), ready, end)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert up.wait(10)
    port, end, loop = started
    yield Counted(port, wakes)
    loop.call_soon_threadsafe(end.set)
    thread.join(20)
    assert not thread.is_alive()


def send(port: int, *parts: bytes, close: bool = False) -> str:
    """Send bytes and read to the end; returns the answer's status and all that follows, '' when there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        if close:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(65536):
            found += more
    return found.decode("latin-1").removeprefix("HTTP/1.1 ")


def request(method: str = "POST", path: str = "/wake", more: str = AUTHORIZED, body: bytes = b"{}") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:8765\r\n{length}{more}\r\n".encode() + body


@pytest.fixture(scope="module")
def open_door() -> Iterator[Counted]:
    with door() as found:
        yield found


@pytest.fixture
def here(open_door: Counted) -> Counted:
    open_door.wakes.clear()
    return open_door


# who is let in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", [AUTHORIZED, f"X-Gleaner-Secret: {SECRET}\r\n", f"authorization: bearer {SECRET}\r\n"]
)
def test_the_right_secret_wakes_in_either_header(here: Counted, header: str) -> None:
    assert send(here.port, request(more=header)).startswith("202 ")
    assert here.wakes == [1]


@pytest.mark.parametrize(
    "header",
    [
        "", "Authorization: Bearer wrong\r\n", f"Authorization: Basic {SECRET}\r\n", f"X-Gleaner-Secret: {SECRET}x\r\n",
        "X-Gleaner-Secret: \r\n", f"Cookie: {SECRET}\r\n", "X-Gleaner-Secret: \xfc\r\n",
    ],
)  # fmt: skip
def test_a_wrong_or_missing_secret_is_refused_and_wakes_nothing(here: Counted, header: str) -> None:
    assert send(here.port, request(more=header)).startswith("401 ")
    assert here.wakes == []


def test_the_secret_in_the_address_is_no_secret(here: Counted) -> None:
    assert send(here.port, request(path=f"/wake?secret={SECRET}", more="")).startswith("401 ")


def test_a_wrong_secret_is_refused_before_its_body_is_read(here: Counted) -> None:
    head = b"POST /wake HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    assert send(here.port, head, close=True).startswith("401 ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200), ("GET", "/wake", 405), ("PUT", "/wake", 405), ("POST", "/health", 405),
        ("POST", "/", 404), ("GET", "/../wake", 404), ("POST", "/wake/", 404), ("POST", "/WAKE", 404),
    ],
)  # fmt: skip
def test_only_one_path_wakes_and_one_says_that_it_is_there(here: Counted, method: str, path: str, status: int) -> None:
    assert send(here.port, request(method, path)).startswith(f"{status} ")
    assert here.wakes == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_a_web_page_cannot_reach_in_by_a_name_of_its_own(here: Counted, host: str) -> None:
    sent = request().replace(b"127.0.0.1:8765", host.encode())
    assert send(here.port, sent).startswith("421 ")
    assert here.wakes == []


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8765"])
def test_the_loopback_interface_has_several_names(here: Counted, host: str) -> None:
    assert send(here.port, request().replace(b"127.0.0.1:8765", host.encode())).startswith("202 ")


def test_at_another_address_any_name_will_do() -> None:
    with door(loopback=False) as found:
        assert send(found.port, request().replace(b"127.0.0.1:8765", b"campaign.example")).startswith("202 ")


# what is too much -----------------------------------------------------------------------------------------


def chunks(size: int) -> bytes:
    head = request(more=f"{AUTHORIZED}Transfer-Encoding: chunked\r\n", body=b"")
    return head + b"".join(
        b"%x\r\n%s\r\n" % (4096, b"x" * 4096) for _ in range(size // 4096)
    ) + b"0\r\n\r\n"  # fmt: skip


def test_a_body_up_to_the_limit_is_taken_and_one_above_is_not(here: Counted) -> None:
    assert send(here.port, request(body=b"x" * LARGEST)).startswith("202 ")
    assert send(here.port, request(body=b"x" * (LARGEST + 1))).startswith("413 ")
    assert send(here.port, chunks(LARGEST)).startswith("202 ")
    assert send(here.port, chunks(LARGEST + 4096)).startswith("413 ")
    assert here.wakes == [1, 1]


def test_a_sender_of_a_megabyte_can_read_the_refusal(here: Counted) -> None:
    assert send(here.port, request(body=b"x" * 900_000)).startswith("413 ")
    assert send(here.port, request(more="", body=b"x" * 900_000)).startswith("401 ")


def test_a_length_that_is_a_lie_wakes_nothing(here: Counted) -> None:
    assert send(here.port, request().replace(b"Content-Length: 2", b"Content-Length: 20"), close=True).startswith(
        "400 "
    )
    both = request(more=f"{AUTHORIZED}Content-Length: 3\r\n")
    assert send(here.port, both).startswith("400 ")
    assert here.wakes == []


def test_a_header_without_end_is_refused(here: Counted) -> None:
    assert send(here.port, b"POST /wake HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000).startswith("431 ")


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /wa", request()[:-3], request(body=b"x" * 30)[:-10]],
    ids=["nothing", "half a line", "half a header", "half a body"],
)
def test_whoever_is_slow_is_told_so_and_the_door_stays_open(sent: bytes) -> None:
    with door(SHORT) as found:
        assert send(found.port, sent).startswith("408 ")
        assert send(found.port, request()).startswith("202 ")
        assert found.wakes == [1]


def test_a_drip_of_bytes_does_not_win_time() -> None:
    with door(SHORT) as found, socket.create_connection(("127.0.0.1", found.port), timeout=20) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in request(body=b"x" * 2000):
            try:
                connection.sendall(bytes([byte]))
                if answer := connection.recv(100):
                    break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_more_connections_than_there_is_room_for_are_told_to_come_later() -> None:
    with door(3.0) as found:
        idle = [socket.create_connection(("127.0.0.1", found.port), timeout=20) for _ in range(CONNECTIONS)]
        try:
            assert send(found.port, request()).startswith("503 ")
        finally:
            for connection in idle:
                connection.close()
        wait_for(lambda: send(found.port, request()).startswith("202 "))


@given(sent=st.binary(max_size=300) | st.binary(max_size=100).map(lambda body: request()[:-2] + b"\r\n" + body))
@settings(max_examples=100, deadline=None)
def test_garbage_is_answered_or_dropped_and_never_wakes_without_the_secret(open_door: Counted, sent: bytes) -> None:
    with_secret = SECRET.encode() in sent
    port, wakes = open_door.port, open_door.wakes
    wakes.clear()
    status = send(port, sent, close=True)[:4]
    assert status == "" or status[:3].isdigit()
    assert wakes == [] or with_secret
    assert send(port, request("GET", "/health", more="")).startswith("200 ")


def test_a_replayed_request_is_one_more_look_and_nothing_else(here: Counted) -> None:
    sent = request(body=b'{"action": "ANNOTATION_CREATED", "label": "flower"}')
    assert [send(here.port, sent)[:3] for _ in range(3)] == ["202"] * 3
    assert here.wakes == [1, 1, 1]


# what a wake does -----------------------------------------------------------------------------------------


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@contextmanager
def waker(root: Path, script: str, pause: float = 0.2, again: float = 0.3) -> Iterator[tuple[Callable[[], None], Path]]:
    """A waker in a thread, whose tick is a line of shell that writes to `ran`; gives its `ask`."""
    ran = root / "ran"
    ran.touch()
    up, kept = threading.Event(), list[Any]()

    async def run() -> None:
        found = Waker(root, ["bash", "-c", script], dict(os.environ), pause, again, log=lambda line: None)
        task = asyncio.create_task(found.work())
        kept.extend([found, asyncio.get_running_loop(), task])
        up.set()
        try:
            await task
        except asyncio.CancelledError:
            return

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert up.wait(10)
    found, loop, task = kept
    yield (lambda: loop.call_soon_threadsafe(found.ask)), ran
    loop.call_soon_threadsafe(task.cancel)
    thread.join(30)
    assert not thread.is_alive()


def test_a_storm_is_at_most_two_ticks_and_never_two_at_once(tmp_path: Path) -> None:
    script = "echo begin >> ran; while [ ! -e go ]; do sleep 0.02; done; echo end >> ran"
    with waker(tmp_path, script) as (ask, ran):
        for _ in range(500):
            ask()
        wait_for(lambda: ran.read_text() == "begin\n")
        for _ in range(500):
            ask()
        (tmp_path / "go").touch()
        wait_for(lambda: ran.read_text().count("end") == 2)
        time.sleep(0.5)  # longer than the pause: a third one would have begun
        assert ran.read_text() == "begin\nend\n" * 2


def test_a_tick_that_found_another_at_work_is_tried_once_more(tmp_path: Path) -> None:
    with waker(tmp_path, "echo busy >> ran; exit 75") as (ask, ran):
        ask()
        wait_for(lambda: ran.read_text() == "busy\n" * 2)
        time.sleep(0.8)  # longer than both pauses: a third one would have begun
        assert ran.read_text() == "busy\n" * 2
        ask()
        wait_for(lambda: ran.read_text() == "busy\n" * 4)


def test_a_tick_that_fails_does_not_end_the_waking(tmp_path: Path) -> None:
    with waker(tmp_path, "echo ran >> ran; exit 1") as (ask, ran):
        ask()
        wait_for(lambda: ran.read_text() == "ran\n")
        ask()
        wait_for(lambda: ran.read_text() == "ran\n" * 2)


def test_a_tick_that_hangs_is_ended_with_the_listener(tmp_path: Path) -> None:
    with waker(tmp_path, "echo $$ > ran; exec sleep 1000") as (ask, ran):
        ask()
        wait_for(lambda: ran.read_text().strip())
        ask()
        pid = int(ran.read_text())
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


# gleaner listen -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign labeled through a folder, whose first batch is out."""
    folder = tmp_path_factory.mktemp("listen")
    changes = {"labeling.tool": "folder", "labeling.options": {}, "labeling.classes": ["0", "1", "2"]}
    root = make_workspace(folder / "workspace", image_folder(folder / "images"), **changes)
    ended = run_in_child(tick, root)
    assert ended.text == "iteration 0", ended.text
    return root


def listener(root: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    command = [str(GLEANER), "listen", "--workspace", str(root), *options]
    return subprocess.Popen(
        command, env={**clean, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def imported(root: Path) -> int:
    with open_ledger(root / LEDGER, lambda: "", write=False) as ledger:
        return sum(item.state == "labeled" for item in ledger.asked())


def test_a_post_wakes_a_real_tick_that_imports_the_answers(campaign: Path) -> None:
    batch = campaign / "data/exchange/iteration-0000/batch.csv"
    lines = batch.read_text().split("\n")
    place = lines[0].split(",").index("label")
    cells = lines[1].split(",")
    cells[place] = "1"
    batch.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    assert imported(campaign) == 0
    with listener(campaign, "--port", "0", GLEANER_WEBHOOK_SECRET=SECRET) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split("/wake")[0].rpartition(":")[2])
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: send(port, request())[:3], range(40)))
        assert answers == ["202"] * 40
        said = ""
        while "tick ended with" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
        said += process.stdout.read()
        assert process.wait(30) == 0
    assert "tick ended with 0" in said and SECRET not in said
    assert imported(campaign) == 1
    beat = json.loads((campaign / ".gleaner/heartbeat.json").read_text())
    assert beat["outcome"] == "idle" and "waiting for annotators: 1 of" in beat["why"]


@pytest.mark.parametrize(
    ("options", "secret", "says"),
    [
        ((), "", "GLEANER_WEBHOOK_SECRET is not set"),
        ((), "short", "GLEANER_WEBHOOK_SECRET has 5 characters: at least 16"),
        (("--host", "192.0.2.1"), SECRET, "is reached from other machines"),
        (("--host", "192.0.2.1", "--exposed"), SECRET, "cannot listen at 192.0.2.1:8765"),
    ],
)
def test_it_does_not_start_without_a_secret_or_where_others_reach_it(
    campaign: Path, options: tuple[str, ...], secret: str, says: str
) -> None:
    with listener(campaign, *options, GLEANER_WEBHOOK_SECRET=secret) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(30) == (1 if "--exposed" in options else 2)
    assert says in said and "Traceback" not in said and SECRET not in said
