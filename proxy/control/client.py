"""Speaks to a running Turnout's control port, for the command line. Standard library only, so that it starts quickly."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

DEFAULT_URL: Final = "http://127.0.0.1:7432"

ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""A list of 100,000 sessions has about 40 MB."""


class ClientError(Exception):
    """A request did not do what was asked. `text` says why, `remedy` what to do, in one line each."""

    def __init__(self, text: str, remedy: str = "", *, status: int = 0, problem: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy
        self.status = status
        """HTTP status; 0: there was no answer."""
        self.problem = problem
        """The answer, if it was problem+json."""


class NotRunning(ClientError):
    """Nobody answers at the control port's address. Nothing was sent."""


class ControlClient:
    """One request at a time, each on a connection of its own."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        """Raises ValueError if `url` is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL like {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._is_tls = parts.scheme == "https"
        self._token = token
        self._timeout_s = timeout_s

    def get(self, path: str, **query: str | int | None) -> Any:
        """The JSON at `path`. Raises ClientError."""
        asked = {key: value for key, value in query.items() if value is not None}
        return self._ask("GET", path + (f"?{urlencode(asked)}" if asked else ""), None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that answers `body`. Raises ClientError."""
        return self._ask("POST", path, json.dumps(body or {}).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection: http.client.HTTPConnection
        if self._is_tls:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise NotRunning(
                    f"no Turnout answers at {self.url} ({error.strerror or error})",
                    "start one with `turnout serve CONFIG`, or say where it is with --url or TURNOUT_URL",
                ) from error
            try:
                connection.request(method, self._prefix + path, body=body, headers=headers)
                with connection.getresponse() as answer:
                    data = answer.read(ANSWER_BYTES_MAX)
            except (OSError, http.client.HTTPException) as error:
                raise ClientError(
                    f"the connection to {self.url} broke ({str(error) or type(error).__name__})",
                    "`turnout status` shows whether it still runs",
                ) from error
        finally:
            connection.close()
        return self._judge(answer, data)

    def _judge(self, answer: http.client.HTTPResponse, data: bytes) -> Any:
        try:
            found = json.loads(data) if data else None
        except ValueError:
            found = None
            if answer.status < 400:
                raise ClientError(
                    f"what answers at {self.url} is not a Turnout's control port",
                    "say where it is with --url or TURNOUT_URL",
                    status=answer.status,
                ) from None
        if answer.status < 400:
            return found
        if not isinstance(found, dict) or "detail" not in found:
            raise ClientError(f"{self.url} answered {answer.status} {answer.reason}", status=answer.status)
        remedy = str(found.get("remedy", ""))
        if answer.status == 401:
            remedy = "put the token into TURNOUT_TOKEN, or name a file that has it with --token-file"
        raise ClientError(str(found["detail"]), remedy, status=answer.status, problem=found)
