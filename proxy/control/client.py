"""Speaks to a running Turnout's control port, for the command line. Standard library only, so that it starts quickly."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from proxy.control.client_errors import DEFAULT_URL, ClientError, NotRunning

ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""A list of 100,000 sessions has about 40 MB."""

_GRAPHIC: Final = re.compile(r"[!-~]+")
"""What a line of HTTP may have in one word. What it may not have must not get there: http.client would quote it, tokens too."""

PATIENCE_S: Final = 10.0
"""How long a request is sent again that the control port has turned away because it came too often. It was not done then."""

EVENTS_SILENCE_S: Final = 40.0
"""A stream of events that says nothing for so long, not even that nothing happened, is broken."""

EVENTS_RETRY_S: Final = 1.0

EVENTS_GONE_S: Final = 30.0
"""How long a control port that has answered is waited for when it does not any more: a supervisor restarts."""


class ControlClient:
    """One request at a time, each on a connection of its own."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """`tls`: for https://, if the system's CAs are not those to trust, or a certificate is to be shown. Raises
        ValueError if `url` is none, or no request could show `token`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or not _GRAPHIC.fullmatch(url):
            raise ValueError(f"{url!r} is not a URL like {DEFAULT_URL}")
        if token is not None and not _GRAPHIC.fullmatch(token):
            raise ValueError(
                "the token has a character that no token has: a space, the end of a line, or a letter beyond ASCII"
            )
        self.url = url.rstrip("/")
        self._host = parts.hostname
        self._port = port
        self._prefix = parts.path.rstrip("/")
        self._is_tls = parts.scheme == "https"
        self._tls = tls
        self._token = token
        self._timeout_s = timeout_s

    def get(self, path: str, **query: str | int | None) -> Any:
        """The JSON at `path`. Raises ClientError."""
        return self._ask("GET", _with_query(path, query), None)[0]

    def pages(self, path: str, **query: str | int | None) -> list[Any]:
        """All pages of a list. Raises ClientError."""
        found: list[Any] = []
        following: str | None = _with_query(path, query)
        while following is not None:
            page, following = self._ask("GET", following, None)
            found += page
        return found

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that answers `body`. Raises ClientError."""
        return self._ask("POST", path, json.dumps(body or {}).encode())[0]

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that answers `body`. Raises ClientError."""
        return self._ask("PUT", path, json.dumps(body).encode())[0]

    def delete(self, path: str, **query: str | int | None) -> Any:
        """The JSON that answers, if any. Raises ClientError."""
        return self._ask("DELETE", _with_query(path, query), None)[0]

    def events(self, **query: str | int | None) -> Iterator[dict[str, Any]]:
        """What happens, as it happens; for ever, over breaks of the connection and restarts of the supervisor. Raises
        ClientError: refused, or nobody answers, not for `EVENTS_GONE_S` either if somebody did before."""
        last_id: str | None = None
        answered: float | None = None
        while True:
            try:
                connection = self._connect(timeout_s=EVENTS_SILENCE_S)
            except NotRunning:
                if answered is None or time.monotonic() - answered > EVENTS_GONE_S:
                    raise
                time.sleep(EVENTS_RETRY_S)
                continue
            try:
                headers = self._headers() | {"Accept": "text/event-stream"}
                if last_id is not None:
                    headers["Last-Event-ID"] = last_id
                connection.request("GET", self._prefix + _with_query("/v1/events", query), headers=headers)
                with connection.getresponse() as answer:
                    if answer.status != 200:
                        self._judge(answer, answer.read(ANSWER_BYTES_MAX))
                    for line in answer:
                        answered = time.monotonic()
                        field, _colon, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                        if field == "id":
                            last_id = value
                        elif field == "data":
                            yield json.loads(value)
            except (OSError, http.client.HTTPException):
                time.sleep(EVENTS_RETRY_S)
            finally:
                connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Raises NotRunning."""
        connection: http.client.HTTPConnection
        if self._is_tls:
            context = self._tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # the latter of a host with a part that is too long for a name
            connection.close()
            raise NotRunning(
                f"no Turnout answers at {self.url} ({getattr(error, 'strerror', None) or error})",
                "start one with `turnout serve CONFIG`, or say where it is with --url or TURNOUT_URL",
            ) from error
        return connection

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[Any, str | None]:
        """The answer, and the path of the next page if there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer, data = self._send(method, path, body)
            wait = answer.headers.get("Retry-After", "") if answer.status in (429, 503) else ""
            if not wait.isdigit() or time.monotonic() + int(wait) > deadline:
                return self._judge(answer, data), _next_page(answer.headers.get("Link", ""))
            time.sleep(int(wait))

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[http.client.HTTPResponse, bytes]:
        headers = self._headers()
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connect(self._timeout_s)
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
        return answer, data

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
            remedy = "put a token into TURNOUT_TOKEN, or name a file that has it with --token-file"
        raise ClientError(str(found["detail"]), remedy, status=answer.status, problem=found)


def _with_query(path: str, query: dict[str, str | int | None]) -> str:
    asked = {key: value for key, value in query.items() if value is not None}
    return path + (f"?{urlencode(asked)}" if asked else "")


def _next_page(link: str) -> str | None:
    """The address of `<…>; rel="next"`: a path, as our own pages give it."""
    address, _semicolon, rest = link.partition(">;")
    return address.lstrip(" <") if 'rel="next"' in rest and address.startswith("</") else None
