"""What every request passes before anything is done for it: how many at once, who it is, how often, whether it is its
turn, what it may bring, and whether it was done before. ASGI middleware; knows no verb.

A handler with `opt={"is_open": True}` is for everybody; one with `opt={"stays": True}` keeps its connection (events) and
is counted by itself; one with `opt={"at_once": True}` waits for no turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from proxy.config import ControlConfig
from proxy.control.access import Access, show_client
from proxy.control.answers import ANSWER_BYTES_MAX, KEY_LENGTH_MAX, Answer, Answers
from proxy.control.audit import AuditLog
from proxy.control.pace import WAIT_MAX_S, Allowance, Allowances, Bill, Turn, Use
from proxy.control.rates import Rates
from proxy.control.roles import Caller, Role
from proxy.errors import ControlError

_log = structlog.get_logger("turnout.control")

STAYING_MAX: Final = 100
"""Most connections that stay open for events."""

STRANGERS_SHARE: Final = 0.1
"""Of `requests_per_s`, for an address whose requests are not let in."""

SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")


class TooMany(ControlError):
    """The caller asks too often, or everybody together does. `retry_after_s` says when to come back."""

    status = 429

    def __init__(self, text: str, *, hint: str, retry_after_s: float = 1.0) -> None:
        super().__init__(text, hint=hint)
        self.retry_after_s = retry_after_s


class Busy(TooMany):
    """Too many requests at the same time."""

    status = 503


class Gate:
    """One for the life of the control port; `wrap` is the middleware."""

    def __init__(self, config: ControlConfig, access: Access, audit: AuditLog, answers: Answers) -> None:
        self._config = config
        self._access = access
        self._audit = audit
        self._answers = answers
        self._callers = Rates(config.requests_per_s)
        self._strangers = Rates(config.requests_per_s * STRANGERS_SHARE)
        self._allowances = Allowances(config.processor_share)
        self._running = 0
        self._staying = 0

    def reconfigure(self, config: ControlConfig) -> None:
        """The rates and callers of a reloaded config."""
        self._config = config
        self._callers.rate = config.requests_per_s
        self._strangers.rate = config.requests_per_s * STRANGERS_SHARE
        self._allowances.share = config.processor_share
        self._access.reconfigure(config)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """`app` behind the gate."""

        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            opt = scope["route_handler"].opt
            if opt.get("is_open"):
                await app(scope, receive, send)
            elif opt.get("stays"):
                await self._stay(app, scope, receive, send)
            else:
                await self._pass(app, scope, receive, send)

        return gated

    async def _stay(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if self._staying >= STAYING_MAX:
            raise Busy(f"{STAYING_MAX} listeners are connected already", hint="close one", retry_after_s=5.0)
        self._staying += 1
        try:
            await self._admit(scope)
            _bill(scope).pause()
            await app(scope, receive, send)
        finally:
            self._staying -= 1

    async def _pass(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        with self._counted():
            caller = await self._admit(scope)
        await self._wait(scope, caller)
        with self._counted():
            await self._let_in(app, scope, receive, send, caller)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One of those at the same time. Raises Busy."""
        if self._running >= self._config.requests_max:
            raise Busy("too many requests at the same time", hint="ask again in a moment; see `requests_max`")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _wait(self, scope: Scope, caller: Caller) -> None:
        """Until it is this caller's turn. What has to be at once has no turns: changes asked for by who may make some, and
        what handlers say of themselves. Raises TooMany; Busy: the connection ends."""
        changes = scope["method"] not in SAFE_METHODS and caller.role >= Role.OPERATOR  # type: ignore[typeddict-item]
        if changes or scope["route_handler"].opt.get("at_once") or self._allowances.share >= 1.0:
            return
        now_s, bill = time.monotonic(), _bill(scope)
        client = scope.get("client")
        # Several people may show one token: each at a machine of their own.
        allowance = self._allowances.of(f"{caller.subject} at {client[0] if client else ''}", now_s)
        # What is not served by `proxy.control.app` has no connections to tell apart.
        use = scope["state"].setdefault("use", Use())
        given_s = allowance.take(now_s, self._allowances.share)
        if given_s is None:
            bill.pause()
            given_s = await self._stand(scope, allowance, use)
            bill.resume()
        bill.charge(allowance, given_s, use)

    async def _stand(self, scope: Scope, allowance: Allowance, use: Use) -> float:
        """In line until its turn comes: the processor time that it is given then, in seconds."""
        loop = asyncio.get_running_loop()
        come: asyncio.Future[bool] = loop.create_future()
        turn = Turn(come.set_result)
        late_s = allowance.stand(turn, use, self._allowances.share)
        if late_s is not None:
            raise _too_greedy(late_s)
        if not allowance.is_watched:
            self._call(allowance)
        try:
            ends: asyncio.Future[None] | None = scope["state"].get("ends")
            waited = (come,) if ends is None else (come, ends)
            await asyncio.wait(waited, timeout=WAIT_MAX_S, return_when=asyncio.FIRST_COMPLETED)
            if come.done() and come.result() and (ends is None or not ends.done()):
                given_s, turn.given_s = turn.given_s, 0.0
                return given_s
            if ends is not None and ends.done():
                raise Busy("the connection ends", hint="ask again on another one")
            raise _too_greedy(WAIT_MAX_S)
        finally:
            turn.leave()
            # What was given, and is not taken.
            allowance.settle(turn.given_s, None)

    def _call(self, allowance: Allowance) -> None:
        """Those whose turn has come, as long as somebody waits."""
        wait_s = allowance.next_s(time.monotonic(), self._allowances.share)
        allowance.is_watched = wait_s is not None
        if wait_s is not None:
            asyncio.get_running_loop().call_later(wait_s, self._call, allowance)

    async def _let_in(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, caller: Caller) -> None:
        headers = _headers(scope)
        key = headers.get("idempotency-key")
        if scope["method"] in SAFE_METHODS or scope["route_handler"].opt.get("has_own_body"):  # type: ignore[typeddict-item]
            await app(scope, receive, send)
            return
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A page of another site can send a form or plain text without being asked, but not JSON.
            raise HTTPException(status_code=415)
        if key is None:
            await app(scope, receive, send)
        else:
            await self._once(app, scope, receive, send, caller, key)

    async def _admit(self, scope: Scope) -> Caller:
        """Who it is; also in the scope's state, for the handlers."""
        client = scope.get("client")
        host = client[0] if client else "unknown"
        shown = show_client(client[0], client[1]) if client else "unknown"
        now_s = time.monotonic()
        try:
            caller = await self._access.admit(_headers(scope), shown, scope["state"].get("certificate"))
        except ControlError as refused:
            self._audit.stranger(shown, f"{scope['method']} {scope['path']}", refused.text)  # type: ignore[typeddict-item]
            # Whoever can show who it is gets in, however often others at the same address have failed to.
            wait_s = self._strangers.take(host, now_s)
            if wait_s:
                raise TooMany(
                    f"{host} has failed to show who it is too often", hint="wait a moment", retry_after_s=wait_s
                ) from None
            raise
        wait_s = self._callers.take(caller.subject, now_s)
        if wait_s:
            raise TooMany(
                "this caller asks too often", hint="ask more slowly; see `requests_per_s`", retry_after_s=wait_s
            )
        scope["state"]["caller"] = caller
        return caller

    async def _once(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, caller: Caller, key: str) -> None:
        """The same request with the same key is done once."""
        key = key.strip().strip('"')
        if not key or len(key) > KEY_LENGTH_MAX or not key.isascii() or not key.isprintable():
            raise ControlError(
                "the Idempotency-Key is not one", hint=f"1 to {KEY_LENGTH_MAX} printable characters; a UUID, say"
            )
        body = await _read(receive, self._config.body_bytes_max)
        asked = (scope["method"], scope["path"], scope["query_string"].decode("latin-1"))  # type: ignore[typeddict-item]
        fingerprint = hashlib.sha256("\0".join(asked).encode() + b"\0" + body).digest()
        before = self._answers.begin(caller.subject, key, fingerprint)
        if before is not None:
            headers = [*before.headers, (b"idempotency-replayed", b"true")]
            await send({"type": "http.response.start", "status": before.status, "headers": headers})
            await send({"type": "http.response.body", "body": before.body, "more_body": False})
            return
        kept = _Kept(send)
        try:
            await app(scope, _Given(body, receive), kept)
        except Exception:
            self._answers.forget(caller.subject, key)
            raise
        # Cancelled in between: it stays open, for nobody knows how far it came.
        answer = kept.answer()
        if answer is not None and 200 <= answer.status < 300 and len(answer.body) <= ANSWER_BYTES_MAX:
            self._answers.end(caller.subject, key, answer)
        else:
            self._answers.forget(caller.subject, key)


class _Given:
    """A `receive` that gives a body which was read already."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Any:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Kept:
    """A `send` that keeps what passes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""
        self._is_whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            if len(self._body) <= ANSWER_BYTES_MAX:
                self._body += message["body"]
            self._is_whole = not message["more_body"]
        await self._send(message)

    def answer(self) -> Answer | None:
        """None: there was none, or not all of one."""
        return Answer(self._status, self._headers, self._body) if self._is_whole else None


def _bill(scope: Scope) -> Bill:
    bill = scope["state"]["bill"]
    assert isinstance(bill, Bill)
    return bill


def _too_greedy(late_s: float) -> TooMany:
    return TooMany(
        "to answer this caller takes more than its share of a processor",
        hint="ask more slowly, or for less; see `processor_share`",
        retry_after_s=late_s,
    )


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _read(receive: Receive, bytes_max: int) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ControlError("the client left before its request was whole")
        body += message["body"]
        if len(body) > bytes_max:
            raise HTTPException(status_code=413)
        if not message["more_body"]:
            return body
