"""Label Studio's REST API: one connection with tokens, time-outs, bounded retries and errors that name the fix.

    api = Api("http://127.0.0.1:8080", token)
    api.get("/api/projects/3/")          ->  {"id": 3, …}         asked again on 429, 5xx and broken connections
    api.post("/api/projects/", {…})      ->  {"id": 4, …}         sent once: after a time-out the server may have done it

Its SDK is not used: it repeats POSTs by itself, so that one dropped connection makes 40 tasks of 20.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import tenacity

from tasks.errors import BadInput, GleanerError, Unreachable

TOKEN = "LABEL_STUDIO_API_KEY"  # noqa: S105 - the variable's name
ATTEMPTS = 4
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After asks for
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_LEGACY = re.compile(r"[0-9a-f]{40}")


class NotFound(GleanerError):
    """The server answers, and has no such thing."""


class Refused(GleanerError):
    """The server understands and says no; its words are in the message."""


class TryAgain(Unreachable):
    """No answer that counts; the same request may be answered later."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait  # seconds that the server asked for


@dataclass
class Api:
    """A connection to one server."""

    url: str
    token: str = field(repr=False)
    sleep: Callable[[float], None] = time.sleep
    _client: httpx.Client | None = field(default=None, repr=False)
    _bearer: str = field(default="", repr=False)

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """JSON of a resource. Raises Unreachable after ATTEMPTS, NotFound, or BadInput for a refused token."""
        return self._retrying(lambda: self._send("GET", path, params=params))

    def patch(self, path: str, body: Any) -> Any:
        """Change a resource; the same change may be made twice."""
        return self._retrying(lambda: self._send("PATCH", path, json=body))

    def delete(self, path: str) -> None:
        """Delete a resource; one that is gone already is no error."""
        try:
            self._retrying(lambda: self._send("DELETE", path))
        except NotFound:
            return

    def post(self, path: str, body: Any) -> Any:
        """Create something, once. Raises Unreachable when it is not known whether the server did it."""
        return self._send("POST", path, json=body)

    def _retrying(self, call: Callable[[], Any]) -> Any:
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_wait,
            retry=tenacity.retry_if_exception_type(TryAgain),
            sleep=self.sleep,
            reraise=True,
        )(call)

    def _send(self, method: str, path: str, **request: Any) -> Any:
        response = self._request(method, path, headers=self._authorization(), **request)
        if response.status_code == 401 and self._bearer:
            self._bearer = ""  # it lives for five minutes
            response = self._request(method, path, headers=self._authorization(), **request)
        return self._read(response, f"{method} {path}")

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        if self._client is None:
            self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT, follow_redirects=False)
        try:
            return self._client.request(method, path, **request)
        except httpx.InvalidURL as error:
            raise BadInput(f"params.yaml: labeling.options.url: {self.url!r} is no address ({error}).") from None
        except httpx.UnsupportedProtocol:
            raise BadInput(
                f"params.yaml: labeling.options.url: {self.url!r} must begin with http:// or https://."
            ) from None
        except httpx.HTTPError as error:
            raise TryAgain(f"{self._name()} does not answer ({type(error).__name__} at {method} {path}).") from error

    def _read(self, response: httpx.Response, what: str) -> Any:
        status = response.status_code
        if status in (401, 403):
            raise BadInput(self._refused(status))
        if status == 404:
            raise NotFound(f"{self._name()} has nothing at {what}.")
        if status == 429 or status >= 500:
            wait = _seconds(response.headers.get("retry-after", ""))
            raise TryAgain(
                f"{self._name()} answers {status} to {what}: it is overloaded or broken. Its log says why.", wait
            )
        if 300 <= status < 400:
            where = httpx.URL(response.headers.get("location", "")).copy_with(query=None)
            raise BadInput(f"{self._name()} sends on to {where}: set labeling.options.url to the address that answers.")
        if status >= 400:
            raise Refused(f"{self._name()} refuses {what} ({status}): {response.text[:500]}")
        return None if status == 204 else self._json(response, what)

    def _json(self, response: httpx.Response, what: str) -> Any:
        try:
            return json.loads(response.content, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "no type")
            raise TryAgain(f"{self._name()} answers {what} with {kind}, not with JSON ({str(error)[:80]}).") from None

    def _authorization(self) -> dict[str, str]:
        if _LEGACY.fullmatch(self.token):
            return {"Authorization": f"Token {self.token}"}
        if not self._bearer:
            response = self._request("POST", "/api/token/refresh/", json={"refresh": self.token})
            access = self._read(response, "POST /api/token/refresh/")
            self._bearer = str(access["access"]) if isinstance(access, dict) and "access" in access else ""
        return {"Authorization": f"Bearer {self._bearer}"}

    def _refused(self, status: int) -> str:
        kind = "a legacy token" if _LEGACY.fullmatch(self.token) else "a personal access token"
        why = "does not know it (or it was renewed)" if status == 401 else "does not allow it this"
        return (
            f"{self._name()} answers {status}: the environment variable {TOKEN} holds {kind}, and the server {why}. Copy "
            "the token of Account & Settings in Label Studio anew; legacy tokens must be enabled in its organization settings."
        )

    def _name(self) -> str:
        return f"Label Studio at {self.url}"


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.wait if isinstance(error, TryAgain) else None
    backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=10.0, jitter=0.5)(state)
    return backoff if asked is None else min(asked, LONGEST_WAIT)


def _seconds(header: str) -> float | None:
    return float(header) if re.fullmatch(r"\d{1,6}", header.strip()) else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
