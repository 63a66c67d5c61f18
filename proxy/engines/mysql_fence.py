"""The fence of a MySQL or MariaDB server: it takes no writes any more, and that is proved; and how it takes them again.

Why it is built as it is
------------------------
- MySQL's `super_read_only` binds every account; MariaDB's `read_only` does not bind those with READ_ONLY ADMIN (before
  10.11: SUPER). Such accounts are named in the proof as exempt. Replication threads are exempt in both, and stay.
- Setting it waits for statements and commits that are under way. So where it is not done at once, sessions that are not
  Turnout's own are ended meanwhile, by the other thread; the wait has a deadline (`lock_wait_timeout`). Once it is set all
  that are there are ended. To look for them takes a server with a thousand sessions several milliseconds: it is done once.
- It is one global variable, in force for all sessions at once, so reading it is proof that it is set. On MySQL a real
  write is tried as well. On MariaDB the account that may set it is itself exempt, so there is no write to try.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from typing import Final

import pymysql

from proxy.engines.engine import FenceProof
from proxy.engines.mysql_link import Link, code_and_text, version_number
from proxy.engines.mysql_replication import replica_state
from proxy.engines.mysql_sessions import client_ids, in_doubt, listed_writers, monitored_writers, outsiders
from proxy.errors import EngineError
from proxy.tasks import cancel_and_wait, spawn

_OPTION_PREVENTS: Final = 1290
"""ER_OPTION_PREVENTS_STATEMENT: the server runs with --read-only or --super-read-only."""
_NO_SUCH_THREAD: Final = 1094
ACKNOWLEDGED_S: Final = 0.5
"""A replica that is there acknowledges a commit within that."""

_AWAITS_REPLICA: Final = "Waiting for semi-sync ACK"
"""State of a session whose commit is to be acknowledged; "from replica" follows, or what replicas were called before."""

PUT_BACK_S: Final = 0.4
"""Time for the statement that puts a server's setting back, also after the deadline of what it was changed for."""

_KILL_DENIED: Final = 1095
_DENIED: Final = frozenset({1044, 1045, 1142, 1227, 1401, 3879})
"""Access or privilege denied; 1401: XA RECOVER."""

_WRITE: Final = "delete from mysql.time_zone where 1 = 0"
"""Changes nothing, and is refused like any write: the read-only check comes before the one of privileges."""

LIST_IDLE_S: Final = 0.105
"""After so long without a reader InnoDB makes its list of transactions anew."""

LOOK_S: Final = 0.1
"""A look at the list and at the monitor takes no longer, if nothing is wrong."""

UNHINDERED_S: Final = 0.005
"""A server that has nothing to wait for is closed to writes within that."""


async def fence(acting: Link, watching: Link, ours: Callable[[], Collection[int]], timeout_s: float) -> FenceProof:
    """Close a primary to writes, end all sessions but `ours` (the server's ids), and prove that nobody writes.

    Raises EngineError: it is a replica, or it cannot be proved; then the server may take writes, or not.
    """
    began_ns = time.monotonic_ns()
    await acting.run(_refuse_replica, timeout_s)
    closing = spawn(_close_to_writes(acting, timeout_s), name=f"close {acting.name} to writes")
    ended = 0
    try:
        # It waits for transactions that are open: those of others are ended meanwhile, which need not be looked for
        # where there are none.
        while not (await asyncio.wait({closing}, timeout=UNHINDERED_S))[0]:
            ended += await watching.run(lambda link: _end_others(link, ours), timeout_s)
    except EngineError:
        # Or it might be closed after somebody has opened it again.
        await watching.run(lambda link: _give_up_closing(link, acting), timeout_s)
        await asyncio.wait({closing})
        raise
    finally:
        await cancel_and_wait(closing)
    if (error := closing.result()) is not None:
        raise error
    return await acting.run(lambda link: _prove_fenced(link, ours, ended, began_ns), timeout_s)


async def _close_to_writes(acting: Link, timeout_s: float) -> EngineError | None:
    """What went wrong, if something did: the fence may be busy with sessions of others then."""
    try:
        await acting.run(lambda link: set_read_only(link, True, timeout_s), timeout_s)
    except EngineError as error:
        return error
    return None


# --- all that follows runs in a link's thread -------------------------------------------------------------------------


def read_only(link: Link) -> tuple[bool, bool]:
    """read_only and super_read_only."""
    if link.is_maria:
        return bool(link.value("select @@global.read_only")), False
    row = link.ask("select @@global.read_only as plain, @@global.super_read_only as super")[0]
    return bool(row["plain"]), bool(row["super"])


def set_read_only(link: Link, is_on: bool, timeout_s: float) -> None:
    """On MySQL for every account. Waits for statements and commits that are under way."""
    # Whole seconds; it bounds the wait for statements and commits that are under way.
    link.ask(f"set session lock_wait_timeout = {max(1, int(timeout_s))}")
    if link.is_maria:
        link.ask(f"set global read_only = {int(is_on)}")
    elif is_on:
        link.ask("set global super_read_only = 1")
    else:
        link.ask("set global super_read_only = 0")
        link.ask("set global read_only = 0")


def prove_writable(link: Link) -> None:
    """Raises EngineError: it refuses writes."""
    is_plain, is_super = read_only(link)
    code = _refused_with(link)
    if is_plain or is_super or code == str(_OPTION_PREVENTS):
        raise EngineError(f"engine {link.name} still refuses writes (read_only = {int(is_plain)}, {code})")


def _refuse_replica(link: Link) -> None:
    if replica_state(link):
        raise EngineError(f"engine {link.name} is a replica: there is nothing to fence")


def _give_up_closing(link: Link, acting: Link) -> None:
    if (waiting := acting.thread_id) is not None:
        link.ask(f"kill query {waiting}")


def _end_others(link: Link, ours: Callable[[], Collection[int]]) -> int:
    """End every client session but `ours`, and wait until they are gone. MySQL keeps sessions of accounts with
    SYSTEM_USER from one without it; `super_read_only` binds them all the same, and who writes is waited for."""
    ended: set[int] = set()
    kept: set[int] = set()
    patience_ends = time.monotonic() + ACKNOWLEDGED_S
    while True:
        others = client_ids(link).difference(ours(), kept)
        if not others:
            return len(ended)
        if ended.issuperset(others) and time.monotonic() > patience_ends:
            _acknowledge(link, ended)
            patience_ends = time.monotonic() + ACKNOWLEDGED_S
        for thread_id in others:
            if thread_id in ended:
                continue
            try:
                link.ask(f"kill {int(thread_id)}")
            except pymysql.err.MySQLError as error:
                code = code_and_text(error)[0]
                if code == _KILL_DENIED and not link.is_maria:
                    kept.add(thread_id)
                    continue
                if code != _NO_SUCH_THREAD:
                    raise
            ended.add(thread_id)
        link.pause(0.001)


def _acknowledge(link: Link, ended: set[int]) -> None:
    """Let sessions go that were told to end, and wait for a replica to acknowledge their commits.

    KILL does not end that wait on MySQL, and after a failover there may be no replica to end it: the fence would wait
    for as long as semi-synchronous replication is told to (for ever, where it must not lose anything). It is switched
    off until these sessions are gone; no client of theirs learns of their commits, for KILL has closed its connection.
    Raises EngineError if somebody waits like that whose connection is open: it would be told of a commit that no replica
    has.
    """
    others = [row["Id"] for row in outsiders(link, ended) if str(row["State"]).startswith(_AWAITS_REPLICA)]
    if others:
        raise EngineError(
            f"engine {link.name} is not fenced: connections that may not be ended wait for a replica to acknowledge"
            f" their commits: {', '.join(map(str, others))}"
        )
    waiting = link.ask("show global status like 'Rpl\\_semi\\_sync\\_%%\\_wait\\_sessions'")
    for row in waiting:
        if int(row["Value"]) == 0:
            continue
        switch = str(row["Variable_name"]).lower().replace("_wait_sessions", "_enabled")
        link.ask(f"set global {switch} = 0")
        try:
            while not ended.isdisjoint(client_ids(link)):
                link.pause(0.001)
        finally:
            link.allow(PUT_BACK_S)
            link.ask(f"set global {switch} = 1")


def _prove_fenced(link: Link, ours: Callable[[], Collection[int]], ended: int, began_ns: int) -> FenceProof:
    ended += _end_others(link, ours)
    if read_only(link) != (True, not link.is_maria):
        raise EngineError(f"engine {link.name} is not fenced: it was told to be read-only and is not")
    refused_with = ""
    if not link.is_maria:
        refused_with = _refused_with(link)
        if refused_with != str(_OPTION_PREVENTS):
            raise EngineError(f"engine {link.name} is not fenced: a write was allowed or refused for another reason")
    _wait_no_writers(link)
    exempt: list[str] = []
    if link.is_maria:
        number = version_number(link.value("select version()"))
        right = "READ_ONLY ADMIN" if number >= 101100 else "SUPER"
        rows = link.ask(
            "select distinct grantee as g from information_schema.user_privileges where privilege_type = %s", right
        )
        exempt = sorted(row["g"] for row in rows)
    try:
        prepared = in_doubt(link)
    except pymysql.err.MySQLError as error:
        if code_and_text(error)[0] not in _DENIED:
            raise
        prepared = []
        exempt.append("prepared transactions: the admin account may not see them (XA_RECOVER_ADMIN)")
    now_ns = time.monotonic_ns()
    return FenceProof(
        engine=link.name,
        how="super_read_only = 1" if not link.is_maria else "read_only = 1",
        refused_with=refused_with,
        sessions_ended=ended,
        writers_left=0,
        prepared_in_doubt=prepared,
        exempt=exempt,
        took_us=(now_ns - began_ns) // 1000,
        at_ns=now_ns,
    )


def _refused_with(link: Link) -> str:
    try:
        link.ask(_WRITE)
    except pymysql.err.MySQLError as error:
        return str(code_and_text(error)[0])
    return ""


def _wait_no_writers(link: Link) -> None:
    """Until InnoDB has no transaction with changes that belongs to a session.

    The list in information_schema is quick to read, but made anew only if nobody has read it for 0.1 s
    (CACHE_MIN_IDLE_TIME_NS in trx0i_s.cc): what it shows may have ended, what it does not show may have begun, for as long
    as somebody looks. A transaction of our own shows whether it was made by now. InnoDB's monitor is never old, and long
    where there are many sessions; so it has the last word where the list is old or not empty.
    """
    seen: list[str] = []
    link.ask("start transaction with consistent snapshot")
    try:
        while (writers := listed_writers(link)) != []:
            text = str(link.ask("show engine innodb status")[0]["Status"])
            is_whole = "... truncated..." not in text
            if is_whole:
                writers = monitored_writers(text)
                if not writers:
                    return
            seen = writers or seen
            link.pause(0.002 if is_whole else LIST_IDLE_S, for_look_s=LOOK_S)
    except EngineError as error:
        who = f"connections with a writing transaction open: {', '.join(seen)}" if seen else error.text
        raise EngineError(f"engine {link.name} is not fenced: {who}") from error
    finally:
        link.allow(PUT_BACK_S)
        # Not where the connection has ended, and the transaction with it.
        with contextlib.suppress(pymysql.err.InterfaceError):
            link.ask("rollback")
