"""Clients for `bench.cutover`: many sessions in one thread that costs the machine as little as it can.

Every session has settings and prepared statements. Some of them work: a short transaction of three round trips (BEGIN, a
prepared UPDATE, COMMIT), then a pause. A round trip costs two system calls and a walk over the answer's headers. What is
said and how it is read is in `cutover_talk`.

A process of its own, started as `python -m bench.cutover_load`. Its stdin takes a `Setup` as one line of JSON, and then
commands, one word a line; each is answered by one line of JSON:

mark     what was seen since the last mark: seconds, transactions, round trips, errors, longest waits
check    ask every session for its settings and statements; the number of those that lost some
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench import relays
from bench.cutover_talk import Answer, Setup, talk_of

ROWS: Final = 10_000
"""Rows of the table `counter`."""


@dataclass(slots=True, eq=False)
class Session:
    """One client connection. `steps` are the requests of what it does now, the first one under way."""

    sock: socket.socket
    number: int
    steps: list[bytes] = field(default_factory=list)
    sent_ns: int = 0
    found: bytes = b""
    """What was answered to the questions of a check."""
    is_checked: bool = False
    """A check is under way."""
    unread: bytes = b""


class Load:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._talk = talk_of(setup)
        self._sessions: dict[int, Session] = {}
        self._poll = select.epoll()
        self._due: list[tuple[int, int]] = []
        self._random = random.Random(1)
        self._checking: set[int] = set()
        self._ended = 0
        self._lost_state = 0
        self._forget()

    def _forget(self) -> None:
        self._marked_ns = time.monotonic_ns()
        self._transactions = 0
        self._trips_ns: list[int] = []
        self._errors: list[str] = []

    # --- the way in --------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Log everybody in, one after the other, and make their state."""
        for number in range(self.setup.sessions):
            sock = self._talk.open(number)
            sock.setblocking(False)
            self._sessions[sock.fileno()] = Session(sock, number)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        now = time.monotonic_ns()
        for session in list(self._sessions.values())[: self.setup.busy]:
            self._rest(session, now)

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
            seconds = (time.monotonic_ns() - self._marked_ns) / 1e9
            trips = sorted(self._trips_ns)
            self._say(
                seconds=round(seconds, 3),
                transactions=self._transactions,
                round_trips=len(trips),
                mean_ms=round(sum(trips) / len(trips) / 1e6, 3) if trips else 0.0,
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
        row = self._random.randrange(ROWS)
        session.steps = [self._talk.commit, self._talk.work(session.number, row), self._talk.begin]
        self._send(session)

    def _send(self, session: Session) -> None:
        session.sent_ns = time.monotonic_ns()
        try:
            session.sock.send(session.steps[-1])
        except OSError as error:
            self._end(session, str(error))

    def _check(self, session: Session) -> None:
        session.is_checked = True
        session.found = b""
        session.steps = self._talk.questions(session.number)[::-1]
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
        answer = self._talk.read(data)
        if answer is None:
            session.unread = data
            return
        session.unread = b""
        if answer.error:
            self._errors.append(answer.error)
        if session.steps:
            self._answered(session, answer)

    def _answered(self, session: Session, answer: Answer) -> None:
        now = time.monotonic_ns()
        session.steps.pop()
        if session.is_checked:
            session.found += b"".join(answer.rows)
        else:
            self._trips_ns.append(now - session.sent_ns)
        if session.steps:
            self._send(session)
        elif session.is_checked:
            self._checked(session)
        else:
            self._transactions += 1
            self._rest(session, now)
            if session.sock.fileno() in self._checking:
                self._check(session)

    def _checked(self, session: Session) -> None:
        session.is_checked = False
        expected = self._talk.expected(session.number)
        if session.found != expected:
            self._lost_state += 1
            self._errors.append(f"session {session.number} answers {session.found!r} instead of {expected!r}")
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
