"""`gleaner label-studio`: a Label Studio of one's own over a workspace, on loopback only, until Ctrl-C.

It is installed in an environment of its own (its packages do not fit beside ours), once for all workspaces; what people
do in it is kept in the workspace: .gleaner/label-studio/. Nothing of it is sent outside: no analytics, no version check;
its first page asks GitHub for tips, which can be out of reach.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from flows import ui
from tasks.errors import GleanerError
from tasks.labeling._label_studio_images import SERVING
from tasks.labeling.label_studio import TOKEN_FILE
from tasks.store import Store

VERSION = "1.23.2"
FOLDER = ".gleaner/label-studio"
CACHE = "GLEANER_CACHE"  # where programs that are installed on demand are kept; default ~/.cache/gleaner


@dataclass(frozen=True)
class Account:
    """The first account of a server: whoever runs it."""

    email: str
    password: str
    token: str


def serve(root: Path, port: int) -> None:
    """Install it if need be, start it, say where it is, and wait. Raises GleanerError when it does not come up."""
    program = install()
    print("starting (half a minute; the first time, with its database to make, a minute or two) ...", flush=True)
    with running(root, program, port) as (address, account, process):
        print(f"Label Studio   {address}   log in as {account.email}, password {account.password}")
        print(f'params.yaml: labeling: {{tool: label_studio, options: {{url: "{address}"}}}}')
        print(
            "Ticks of this workspace use its token by themselves. Ctrl-C ends it; what was labeled is kept.", flush=True
        )
        ui.until_interrupted([process])


def install() -> Path:
    """Label Studio's program, installed in its own environment the first time. Raises GleanerError with the log's place."""
    home = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "gleaner") / f"label-studio-{VERSION}"
    program, log = home / "bin" / "label-studio", home.with_name(f"label-studio-{VERSION}.log")
    if (home / "installed").exists():
        return program
    home.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing Label Studio {VERSION} in {home} (once; a minute or two) ...", flush=True)
    with open(log, "wb") as output:
        for command in _commands(home):
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                raise GleanerError(f"Label Studio {VERSION} could not be installed; {log} says why.")
    (home / "installed").touch()
    return program


def _commands(home: Path) -> Iterator[list[str]]:
    yield [sys.executable, "-m", "venv", "--clear", str(home)]
    python, uv = str(home / "bin" / "python"), Path(sys.executable).with_name("uv")
    installer = [str(uv), "pip", "install", "--python", python] if uv.exists() else [python, "-m", "pip", "install"]
    yield [*installer, f"label-studio=={VERSION}"]


@contextmanager
def running(root: Path, program: Path, port: int) -> Iterator[tuple[str, Account, subprocess.Popen[bytes]]]:
    """The server of a workspace for the length of the block: its address, first account and process."""
    folder = root.resolve() / FOLDER
    (root.resolve() / SERVING).mkdir(parents=True, exist_ok=True, mode=0o700)
    account, port = _account(root), ui.free_port(port)
    address, log = f"http://{ui.HOST}:{port}", folder / "server.log"
    command = [str(program), "start", "--no-browser", "--internal-host", ui.HOST, "--port", str(port)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(root, program, account),
            start_new_session=True,
        )  # fmt: skip
    try:
        ui.wait_for(process, f"{address}/health", log)
        _prove_own(address, account, log)
        yield address, account, process
    finally:
        ui.stop([process])


def environment(root: Path, program: Path, account: Account) -> dict[str, str]:
    """Its whole environment: nothing of ours is passed on but where programs are."""
    folder = root.resolve() / FOLDER
    return {
        "PATH": os.pathsep.join([str(program.parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": account.email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_USER_TOKEN": account.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",  # its webhooks may call `gleaner listen` on loopback
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root.resolve() / SERVING),
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }


def _account(root: Path) -> Account:
    """Minted once a workspace; readable by its owner only."""
    store, file = Store(root), f"{FOLDER}/account.json"
    store.path(FOLDER).mkdir(parents=True, exist_ok=True, mode=0o700)
    if not store.exists(file):
        made = Account("gleaner@localhost.local", secrets.token_urlsafe(12), secrets.token_hex(20))
        store.write_json(file, asdict(made))
        store.path(file).chmod(0o600)
    account = Account(**json.loads(store.path(file).read_text(encoding="utf-8")))
    store.write_bytes(TOKEN_FILE, account.token.encode())
    store.path(TOKEN_FILE).chmod(0o600)
    return account


def _prove_own(address: str, account: Account, log: Path) -> None:
    """A port that somebody took meanwhile moves the server to the next one, without a word."""
    answer = httpx.get(
        f"{address}/api/current-user/whoami", headers={"Authorization": f"Token {account.token}"}, timeout=30.0
    )
    if answer.status_code != 200:
        raise GleanerError(f"another program answers at {address} ({answer.status_code}). Its log: {log}")
