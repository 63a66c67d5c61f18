"""Messages as bytes, and back.

A frame is four bytes of length, big endian, then one msgpack object with its type in `t`. Both ends are ours, but the length
is bounded all the same: a frame over `FRAME_BYTES_MAX` ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from proxy.ipc import facts, figures, listings, orders, switch_facts, switch_orders

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Room for a list of 100,000 sessions."""

Order = (
    orders.Configure
    | orders.StandStill
    | orders.Retire
    | orders.Fresh
    | orders.Quit
    | orders.CountBackends
    | orders.ListBackends
    | orders.ListSessions
    | orders.CollectFigures
    | orders.Witness
    | orders.EndSession
    | orders.CancelQuery
    | orders.CancelDone
    | orders.KillSession
    | orders.KillDone
    | orders.ListIds
    | orders.IdsTold
    | orders.ConsoleAnswer
    | switch_orders.Share
    | switch_orders.Prepare
    | switch_orders.StopOpening
    | switch_orders.Hold
    | switch_orders.Abandon
    | switch_orders.Terminate
    | switch_orders.Leave
    | switch_orders.Retarget
    | switch_orders.Release
)
"""Supervisor to worker."""

Fact = (
    facts.Hello
    | facts.Configured
    | facts.EngineLost
    | facts.Witnessed
    | facts.SessionEnded
    | facts.CancelWanted
    | facts.CancelTaken
    | facts.KillWanted
    | facts.KillTaken
    | facts.IdsWanted
    | facts.IdList
    | facts.ConsoleAsked
    | facts.ConsoleStopped
    | facts.QuerySpans
    | switch_facts.Shared
    | switch_facts.Prepared
    | switch_facts.OpeningStopped
    | switch_facts.Draining
    | switch_facts.AllHeld
    | switch_facts.Retargeted
    | switch_facts.Released
    | switch_facts.FirstRow
    | switch_facts.Expired
    | listings.SessionList
    | listings.BackendList
    | listings.BackendsCounted
    | figures.WorkerFigures
)
"""Worker to supervisor."""

_encoder = msgspec.msgpack.Encoder()
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_fact_decoder: msgspec.msgpack.Decoder[Fact] = msgspec.msgpack.Decoder(Fact)


def encode(message: Order | Fact) -> bytes:
    """One frame. Names that clients and servers give in bytes that are no UTF-8 travel in a readable form (`\\xb4`)."""
    try:
        body = _encoder.encode(message)
    except UnicodeEncodeError:
        body = _encoder.encode(_readable(msgspec.to_builtins(message, builtin_types=(bytes,))))
    assert len(body) <= FRAME_BYTES_MAX, f"{type(message).__name__} of {len(body)} bytes"
    return len(body).to_bytes(4, "big") + body


def _readable(value: Any) -> Any:
    """The same without lone surrogates, in which the protocols keep bytes that are no UTF-8."""
    match value:
        case str():
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        case list():
            return [_readable(one) for one in value]
        case dict():
            return {_readable(name): _readable(one) for name, one in value.items()}
        case _:
            return value


def decode_order(body: bytes) -> Order:
    """Raises msgspec.DecodeError."""
    return _order_decoder.decode(body)


def decode_fact(body: bytes) -> Fact:
    """Raises msgspec.DecodeError."""
    return _fact_decoder.decode(body)


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The bodies of the frames of one connection, until it ends. A frame over the bound raises ValueError."""
    while True:
        try:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if size > FRAME_BYTES_MAX:
                raise ValueError(f"frame of {size} bytes; the bound is {FRAME_BYTES_MAX}")
            body = await reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield body
