"""What the proxy itself asks an idle backend: several commands sent at once, their answers read one after another.

Answers are small and read whole; the reader knows what a client library knows of results, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocols.errors import ProtocolViolation
from protocols.mysql import constants as c
from protocols.mysql.framing import PacketReader
from protocols.mysql.messages import NO_ATTRIBUTES, Err, Reader, command, parse_err, parse_ok_status


@dataclass(frozen=True, slots=True)
class Question:
    """One command and what is known of its answer."""

    packet: bytes
    """The command, complete."""
    name: str = ""
    """What the asker finds the answer by."""
    is_optional: bool = False
    """A refusal is expected here and there and is no error of the exchange."""
    statement: int | None = None
    """COM_STMT_PREPARE: the client's id of the statement."""


def _without_attributes(query: bytes) -> bytes:
    """A COM_QUERY, complete, as a server takes it that expects attributes before the text."""
    text = bytearray()
    while query:
        size = int.from_bytes(query[:3], "little")
        text += query[c.HEADER_BYTES : c.HEADER_BYTES + size]
        query = query[c.HEADER_BYTES + size :]
    return command(c.COM_QUERY, NO_ATTRIBUTES + text[1:])


@dataclass(slots=True)
class Answer:
    question: Question
    error: Err | None = None
    types: list[int] = field(default_factory=list)
    """Column types of the last result."""
    rows: list[list[bytes | None]] = field(default_factory=list)
    """Text rows of all results."""
    status: int = 0
    """Last status flags."""
    statement_id: int = 0
    """COM_STMT_PREPARE: what the backend calls the statement."""


class Exchange:
    """See `protocols.wire.Exchange`. `on_complete` gets all answers, in the order of the questions."""

    def __init__(
        self,
        questions: Sequence[Question],
        *,
        capabilities: int,
        on_complete: Callable[[list[Answer]], None] | None = None,
    ) -> None:
        """`capabilities`: of the backend's Startup."""
        assert questions, "an exchange asks something"
        packets = [question.packet for question in questions]
        if capabilities & c.CLIENT_QUERY_ATTRIBUTES:
            packets = [_without_attributes(one) if one[4] == c.COM_QUERY else one for one in packets]
        self.request = b"".join(packets)
        self.errors: list[str] = []
        self.postponed: list[str] = []
        self.unasked = b""
        """A MySQL server says nothing unasked."""
        self.parameters: dict[str, str] = {}
        self.answers: list[Answer] = []
        self._questions = list(questions)
        self._deprecates_eof = bool(capabilities & c.CLIENT_DEPRECATE_EOF)
        self._has_extended_metadata = bool(capabilities & c.MARIADB_CLIENT_EXTENDED_METADATA)
        self._on_complete = on_complete
        self._packets = PacketReader("server", sequence=1, payload_max=c.EXCHANGE_BYTES_MAX)
        self._packets.takes_any = True
        self._columns_left = 0
        self._is_in_rows = False
        self._awaits_eof = False
        self._definitions_left: list[int] = []
        self._current = Answer(self._questions[0])
        self._command = self._questions[0].packet[4]
        self._is_complete = False

    def receive(self, data: bytes) -> bool:
        """Take bytes of the backend; True once every answer is complete. Raises ProtocolViolation."""
        self._packets.feed(data)
        while not self._is_complete and (payload := self._packets.next()) is not None:
            self._packet(payload)
        if self._is_complete and self._packets.has_rest:
            raise ProtocolViolation("server", "sent more than was asked for")
        return self._is_complete

    # --- one answer ---

    def _packet(self, payload: bytes) -> None:
        if not payload:
            raise ProtocolViolation("server", "an empty packet")
        first = payload[0]
        if first == c.ERR:
            self._current.error = parse_err(payload, "server")
            self._done()
        elif self._command == c.COM_STMT_PREPARE:
            self._prepare_packet(payload)
        elif self._is_in_rows:
            self._row_packet(payload)
        elif self._columns_left:
            self._column_packet(payload)
        elif self._awaits_eof:
            self._status_of_end(payload)
            self._awaits_eof = False
            self._is_in_rows = True
        elif first in (c.OK, c.EOF):
            self._current.status = (
                self._status_of_end(payload) if first == c.EOF else parse_ok_status(payload, "server")
            )
            self._result_done()
        elif first == c.LOCAL_INFILE:
            raise ProtocolViolation("server", "asks the proxy for a file")
        else:
            self._columns_left = Reader(payload, "server").lenenc()
            if not 0 < self._columns_left < 65_536:
                raise ProtocolViolation("server", "an impossible number of columns")
            self._current.types = []

    def _is_end(self, payload: bytes) -> bool:
        return payload[0] == c.EOF and len(payload) < (c.PAYLOAD_BYTES_MAX if self._deprecates_eof else 9)

    def _status_of_end(self, payload: bytes) -> int:
        if not self._is_end(payload):
            raise ProtocolViolation("server", "no EOF where it is due")
        if self._deprecates_eof:
            return parse_ok_status(payload, "server")
        return Reader(payload, "server", 3).integer(2)

    def _column_packet(self, payload: bytes) -> None:
        """Catalog, schema, table, original table, name, original name, perhaps MariaDB's extended type; then a fixed part
        with the type at 7."""
        reader = Reader(payload, "server")
        for _ in range(7 if self._has_extended_metadata else 6):
            reader.lenenc_bytes()
        reader.take(7)
        self._current.types.append(reader.integer(1))
        self._columns_left -= 1
        if not self._columns_left:
            self._awaits_eof = not self._deprecates_eof
            self._is_in_rows = self._deprecates_eof

    def _row_packet(self, payload: bytes) -> None:
        if self._is_end(payload):
            self._current.status = self._status_of_end(payload)
            self._is_in_rows = False
            self._result_done()
            return
        reader = Reader(payload, "server")
        self._current.rows.append([reader.lenenc_bytes() for _ in self._current.types])

    def _result_done(self) -> None:
        if not self._current.status & c.SERVER_MORE_RESULTS_EXISTS:
            self._done()

    def _prepare_packet(self, payload: bytes) -> None:
        """OK with the id and two counts; then as many definitions, each group ended by EOF if that is in use."""
        if not self._definitions_left:
            reader = Reader(payload, "server", 1)
            if payload[0] != c.OK:
                raise ProtocolViolation("server", "neither a prepared statement nor ERR")
            self._current.statement_id = reader.integer(4)
            columns, parameters = reader.integer(2), reader.integer(2)
            ends = 0 if self._deprecates_eof else 1
            self._definitions_left = [count + ends for count in (parameters, columns) if count]
        else:
            self._definitions_left[0] -= 1
            if not self._definitions_left[0]:
                del self._definitions_left[0]
        if not self._definitions_left:
            self._done()

    def _done(self) -> None:
        """The present answer is complete; on to the next one."""
        self.answers.append(self._current)
        error = self._current.error
        if error is not None and not self._current.question.is_optional:
            self.errors.append(f"{self._current.question.name}: {error.message} ({error.code})")
        self._columns_left = 0
        self._is_in_rows = False
        self._awaits_eof = False
        self._definitions_left = []
        self._packets.takes_any = True
        if len(self.answers) == len(self._questions):
            self._is_complete = True
            if self._on_complete is not None:
                self._on_complete(self.answers)
            return
        self._current = Answer(self._questions[len(self.answers)])
        self._command = self._current.question.packet[4]
