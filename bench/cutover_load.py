"""Clients for `bench.cutover`: many PostgreSQL sessions in one thread that costs the machine as little as it can.

Every session has settings and prepared statements. Some of them work: a short transaction of three round trips (BEGIN, a
prepared UPDATE, COMMIT), then a pause. The messages are built once; a round trip costs two system calls and a walk
over the answer's headers.

A process of its own, started as `python -m bench.cutover_load`. Its stdin takes a `Setup` as one line of JSON, and then
commands, one word a line; each is answered by one line of JSON:

mark     what was seen since the last mark: transactions, round trips, errors, longest waits
check    ask every session for its settings and statements; the number of those that lost some
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench import relays

_PROTOCOL_3_0: Final = 196_608

ROWS: Final = 10_000
"""Rows of the table `counter`."""


@dataclass(kw_only=True)
class Setup:
    """What the bench tells its load."""

    port: int
    user: str
    database: str
    sessions: int
    busy: int
    """How many of them work."""
    pause_ms: float
    """Mean pause of a busy session between two transactions; 0: none."""
    with_state: bool
    """Settings and prepared statements; else plain queries only, for a pooler in transaction mode that knows neither."""


def message(tag: bytes, body: bytes) -> bytes:
    """One protocol message."""
    return tag + struct.pack("!i", len(body) + 4) + body


def startup(user: str, database: str) -> bytes:
    """The first message of a session."""
    body = struct.pack("!i", _PROTOCOL_3_0) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack("!i", len(body) + 4) + body


def query(text: str) -> bytes:
    """A Query."""
    return message(b"Q", text.encode() + b"\0")


def parse(name: str, text: str) -> bytes:
    """A Parse, without types."""
    return message(b"P", f"{name}\0{text}\0".encode() + struct.pack("!h", 0))


def execute(name: str, *values: str) -> bytes:
    """Bind, Execute and Sync of a prepared statement with text parameters."""
    body = b"\0" + name.encode() + b"\0" + struct.pack("!hh", 0, len(values))
    for value in values:
        body += struct.pack("!i", len(value)) + value.encode()
    return message(b"B", body + struct.pack("!h", 0)) + message(b"E", b"\0" + struct.pack("!i", 0)) + message(b"S", b"")


BEGIN: Final = query("begin")
COMMIT: Final = query("commit")
SYNC: Final = message(b"S", b"")


@dataclass(slots=True, eq=False)
class Session:
    """One client connection. `steps` are the requests of what it does now, the first one under way."""

    sock: socket.socket
    number: int
    steps: list[bytes] = field(default_factory=list)
    sent_ns: int = 0
    began_ns: int = 0
    expected: bytes = b""
    """Must be in the answer; for a check."""
    unread: bytes = b""


class Load:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._sessions: dict[int, Session] = {}
        self._poll = select.epoll()
        self._due: list[tuple[int, int]] = []
        self._random = random.Random(1)
        self._checking: set[int] = set()
        self._ended = 0
        self._lost_state = 0
        self._forget()

    def _forget(self) -> None:
        self._transactions = 0
        self._trips_ns: list[int] = []
        self._errors: list[str] = []

    # --- the way in --------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Log everybody in, one after the other, and make their state."""
        for number in range(self.setup.sessions):
            sock = socket.create_connection(("127.0.0.1", self.setup.port), timeout=30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(startup(self.setup.user, self.setup.database))
            self._wait_ready(sock)
            if self.setup.with_state:
                for request in state_of(number):
                    sock.sendall(request)
                    self._wait_ready(sock)
            sock.setblocking(False)
            self._sessions[sock.fileno()] = Session(sock, number)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        now = time.monotonic_ns()
        for session in list(self._sessions.values())[: self.setup.busy]:
            self._rest(session, now)

    @staticmethod
    def _wait_ready(sock: socket.socket) -> None:
        data = b""
        while not data.endswith(b"Z\0\0\0\x05I"):
            chunk = sock.recv(65_536)
            if not chunk or chunk[:1] == b"E":
                raise OSError(f"refused: {(data + chunk)!r}")
            data += chunk

    # --- working -----------------------------------------------------------------------------------------------------

    def run(self, stdin: int) -> None:
        """Until stdin ends."""
        self._poll.register(stdin, select.EPOLLIN)
        while True:
            now = time.monotonic_ns()
            while self._due and self._due[0][0] <= now:
                self._begin(self._sessions.get(heapq.heappop(self._due)[1]), now)
            wait_s = max(0.0, (self._due[0][0] - now) / 1e9) if self._due else 1.0
            for fd, _ in self._poll.poll(wait_s):
                if fd != stdin:
                    self._read(self._sessions[fd])
                elif not (words := os.read(stdin, 4096)):
                    return
                else:
                    for word in words.decode().split():
                        self._obey(word)

    def _obey(self, word: str) -> None:
        if word == "check":
            self._lost_state = 0
            self._checking = set(self._sessions)
            for fd in list(self._checking):
                if not self._sessions[fd].steps:
                    self._check(self._sessions[fd])
            self._tell_checked()
        else:
            trips = sorted(self._trips_ns)
            self._say(
                transactions=self._transactions,
                round_trips=len(trips),
                p50_ms=_part_ms(trips, 0.5),
                p99_ms=_part_ms(trips, 0.99),
                max_ms=_part_ms(trips, 1.0),
                slowest_ms=[round(one / 1e6, 2) for one in trips[-self.setup.busy :]],
                errors=len(self._errors),
                first_error=self._errors[0] if self._errors else "",
                sessions=len(self._sessions),
                ended=self._ended,
                cpu_s=round(time.process_time(), 3),
            )
            self._forget()

    def _say(self, **words: Any) -> None:
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()

    def _rest(self, session: Session, now: int) -> None:
        pause_ns = int(self.setup.pause_ms * 1e6 * self._random.uniform(0.5, 1.5))
        heapq.heappush(self._due, (now + pause_ns, session.sock.fileno()))

    def _begin(self, session: Session | None, now: int) -> None:
        if session is None:
            return
        if session.steps:
            # It is being checked: a little later.
            self._rest(session, now)
            return
        row = str(self._random.randrange(ROWS))
        if self.setup.with_state:
            session.steps = [COMMIT, execute("work", row), BEGIN]
        else:
            session.steps = [COMMIT, query(f"update counter set value = value + 1 where id = {row}"), BEGIN]
        session.began_ns = now
        self._send(session)

    def _send(self, session: Session) -> None:
        session.sent_ns = time.monotonic_ns()
        try:
            session.sock.send(session.steps[-1])
        except OSError as error:
            self._end(session, str(error))

    def _check(self, session: Session) -> None:
        if not self.setup.with_state:
            session.expected = b"here"
            session.steps = [query("select 'here'")]
        else:
            session.expected = answer_of(session.number)
            session.steps = [
                query("select current_setting('app.number') || current_setting('work_mem')")
                + query("execute by_name(1)")
                + execute("work", "-1")
                + execute("answer", "1")
            ]
        session.unread = b""
        self._send(session)

    def _read(self, session: Session) -> None:
        try:
            data = session.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(session, str(error))
            return
        if not data:
            self._end(session, "connection closed")
            return
        if session.unread:
            data = session.unread + data
        position, ready, is_whole = 0, 0, True
        while position < len(data):
            if len(data) - position < 5:
                is_whole = False
                break
            size = int.from_bytes(data[position + 1 : position + 5], "big") + 1
            if position + size > len(data):
                is_whole = False
                break
            tag = data[position]
            if tag == 0x5A:
                ready += 1
            elif tag == 0x45:
                self._errors.append(data[position + 5 : position + size].replace(b"\0", b" ").decode(errors="replace"))
            position += size
        if session.expected:
            if not is_whole or ready < (4 if self.setup.with_state else 1):
                session.unread = data
                return
            self._checked(session, data)
            return
        if not is_whole or not ready:
            session.unread = data
            return
        session.unread = b""
        if session.steps:
            self._answered(session)

    def _answered(self, session: Session) -> None:
        now = time.monotonic_ns()
        self._trips_ns.append(now - session.sent_ns)
        session.steps.pop()
        if session.steps:
            self._send(session)
            return
        self._transactions += 1
        fd = session.sock.fileno()
        if fd in self._checking:
            self._rest(session, now)
            self._check(session)
        else:
            self._rest(session, now)

    def _checked(self, session: Session, data: bytes) -> None:
        texts = b"".join(rows_of(data))
        if texts != session.expected:
            self._lost_state += 1
            self._errors.append(f"session {session.number} answers {texts!r} instead of {session.expected!r}")
        session.expected = session.unread = b""
        session.steps = []
        self._checking.discard(session.sock.fileno())
        self._tell_checked()

    def _tell_checked(self) -> None:
        if not self._checking:
            self._say(lost_state=self._lost_state)

    def _end(self, session: Session, why: str) -> None:
        fd = session.sock.fileno()
        self._errors.append(why)
        self._ended += 1
        self._poll.unregister(fd)
        del self._sessions[fd]
        session.sock.close()
        if fd in self._checking:
            self._lost_state += 1
            self._checking.discard(fd)
            self._tell_checked()


def state_of(number: int) -> list[bytes]:
    """Requests that give a session its state."""
    return [
        query(f"select set_config('app.number', '{number}', false)"),
        query(f"set work_mem = '{4096 + number}kB'"),
        query("set search_path = public"),
        query("prepare by_name (int) as select 'named' || $1"),
        parse("work", "update counter set value = value + 1 where id = $1::int")
        + parse("answer", f"select 'answer {number} ' || $1::int")
        + SYNC,
    ]


def answer_of(number: int) -> bytes:
    """What a session with that state answers to a check."""
    memory = 4096 + number
    shown = f"{memory // 1024}MB" if memory % 1024 == 0 else f"{memory}kB"
    return f"{number}{shown}named1answer {number} 1".encode()


def rows_of(data: bytes) -> list[bytes]:
    """First columns of all DataRows."""
    found, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position + 1 : position + 5], "big") + 1
        if data[position] == 0x44:
            length = int.from_bytes(data[position + 7 : position + 11], "big")
            found.append(data[position + 11 : position + 11 + length])
        position += size
    return found


def _part_ms(ordered_ns: list[int], share: float) -> float:
    if not ordered_ns:
        return 0.0
    return round(ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / 1e6, 3)


def main() -> None:
    """The program."""
    relays.allow_many_descriptors()
    stdin = sys.stdin.fileno()
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(stdin, 1)
    load = Load(Setup(**json.loads(line)))
    load.connect()
    sys.stdout.write(json.dumps({"ready": load.setup.sessions}) + "\n")
    sys.stdout.flush()
    load.run(stdin)


if __name__ == "__main__":
    main()
