"""Something the proxy itself asks an idle backend: requests in groups, each ended by its own ReadyForQuery.

Groups keep failures apart: what fails in one does not stop the next. All of them are sent at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols.errors import ProtocolViolation
from protocols.postgres.constants import ANSWER_BYTES_MAX
from protocols.postgres.framing import Framer
from protocols.postgres.messages import (
    build_flush,
    build_parse,
    build_query,
    parse_data_row,
    parse_error,
    parse_parameter_status,
)


@dataclass(frozen=True, slots=True)
class Group:
    """A Query, or messages of the extended protocol with their Sync."""

    label: str
    """What is asked, for people: begins the error if it is refused."""
    request: bytes
    columns: int | None = None
    """How many each row of its answer has; 0: there are no rows in it; None: whoever reads them looks."""


class PostgresExchange:
    """See `wire.Exchange`."""

    def __init__(self, groups: list[Group]) -> None:
        assert groups, "an exchange asks something"
        self.request = b"".join(group.request for group in groups)
        self.errors: list[str] = []
        self.postponed: list[str] = []
        self.rows: list[list[bytes | None]] = []
        """Of all groups, in their order."""
        self.parameters: dict[str, str] = {}
        """ParameterStatus values that came with the answer."""
        self.unasked = b""
        """NotificationResponse and ParameterStatus messages that came meanwhile. Notices are left out: they are about
        what the proxy asked."""
        self._groups = groups
        self._answered = 0
        self._framer = Framer("server", ANSWER_BYTES_MAX)

    def receive(self, data: bytes) -> bool:
        """Take bytes of the backend; True once the answer is complete. Raises ProtocolViolation."""
        self._framer.receive(data)
        while (message := self._framer.next_message()) is not None:
            tag = message[:1]
            if self._answered == len(self._groups) and tag not in b"ANSE":
                raise ProtocolViolation("server", f"unexpected message type 0x{message[0]:02x} after an exchange")
            if tag == b"D":
                self._note_row(parse_data_row(message))
            elif tag == b"d":
                self._on_copy_data(message[5:])
            elif tag == b"E":
                self._note_error(message)
            elif tag == b"S":
                name, value = parse_parameter_status(message)
                self.parameters[name] = value
                self.unasked += message
            elif tag == b"A":
                self.unasked += message
            elif tag == b"Z":
                self._end_group(message)
            elif tag not in b"123TCINnstHGc":
                raise ProtocolViolation("server", f"unexpected message type 0x{message[0]:02x} in an exchange")
        return self._answered == len(self._groups)

    def _note_row(self, row: list[bytes | None]) -> None:
        columns = self._groups[self._answered].columns
        if columns is not None and not len(row) == columns > 0:
            raise ProtocolViolation("server", f"a row of {len(row)} columns where {columns} were asked for")
        self.rows.append(row)

    def _note_error(self, message: bytes) -> None:
        fields = parse_error(message)
        label = self._groups[self._answered].label if self._answered < len(self._groups) else "afterwards"
        self.errors.append(f"{label}: {fields.message} ({fields.sqlstate})")

    def _end_group(self, message: bytes) -> None:
        if message[5:] != b"I":
            raise ProtocolViolation("server", "an exchange ended inside of a transaction")
        self._answered += 1
        if self._answered == len(self._groups):
            self._on_complete()

    def _on_copy_data(self, data: bytes) -> None:
        """For subclasses that read by COPY; `self._answered` is the number of the group it belongs to."""
        raise ProtocolViolation("server", "COPY data that nobody asked for")

    def _on_complete(self) -> None:
        """For subclasses."""


_MISSTEP: Final = b"ROLLBACK TO SAVEPOINT turnout_lost_the_server_of_this_transaction"
"""Fails with a text that explains itself in the server's log."""


class Wreckage:
    """Brings a fresh backend to where a lost one stood, as its client was told: see `wire.Tracker.wreckage`.

    `in_transaction`: inside of a transaction that has failed. `is_skipping`: in a batch of the extended protocol that
    has failed, so that everything up to the client's next Sync is ignored.
    """

    def __init__(self, *, in_transaction: bool, is_skipping: bool) -> None:
        assert in_transaction or is_skipping
        request = build_query(b"BEGIN") + build_query(_MISSTEP) if in_transaction else b""
        if is_skipping:
            # A syntax error: in a failed transaction it comes before 25P02.
            request += build_parse(b"", b"turnout_lost_the_server_of_this_batch") + build_flush()
        self.request = request
        self.errors: list[str] = []
        self.postponed: list[str] = []
        self.unasked = b""
        self.parameters: dict[str, str] = {}
        self._ready_left = 2 if in_transaction else 0
        self._is_skipping = is_skipping
        self._framer = Framer("server", ANSWER_BYTES_MAX)

    def receive(self, data: bytes) -> bool:
        """Take bytes of the backend; True once it stands there. Raises ProtocolViolation."""
        self._framer.receive(data)
        while (message := self._framer.next_message()) is not None:
            tag = message[:1]
            if tag == b"Z":
                self._ready_left -= 1
                if self._ready_left == 0 and message[5:] != b"E":
                    raise ProtocolViolation("server", "a transaction that should have failed did not")
            elif tag == b"E":
                if self._ready_left == 0 and self._is_skipping:
                    self._is_skipping = False
            elif tag == b"A":
                self.unasked += message
            elif tag not in b"CNS":
                raise ProtocolViolation("server", f"unexpected message type 0x{message[0]:02x} in an exchange")
        return self._ready_left == 0 and not self._is_skipping
