"""The tracker moves as the tables say, pair by pair; and the numbers it is compiled with are those of the modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import protocols.codes
from protocols.codes import GATE_OPEN
from protocols.errors import ProtocolViolation
from protocols.mysql import constants as c
from protocols.mysql import state
from protocols.mysql.messages import command, lenenc, packet
from protocols.mysql.state import ANSWERS, NEXT, OWN, SILENT, WITHOUT_EOF, Phase, Seen, next_phase
from tests.protocols.mysql.relay import (
    AUTOCOMMIT,
    CURSOR,
    MORE,
    PING,
    Relay,
    column_payload,
    err_payload,
    ok_payload,
    prepare,
    prepared_payload,
    query,
    row_payload,
)

REQUESTS = {
    Phase.SIMPLE: PING,
    Phase.PREPARED: prepare("select 1"),
    Phase.PARAMETERS: prepare("select 1"),
    Phase.PARAMETERS_END: prepare("select 1"),
    Phase.FIELDS: prepare("select 1"),
    Phase.FIELDS_END: prepare("select 1"),
    Phase.LIST: command(c.COM_FIELD_LIST, b"t\0"),
    Phase.STATISTICS: command(c.COM_STATISTICS),
    Phase.DUMP: command(c.COM_BINLOG_DUMP_GTID, bytes(30)),
}


def way_to(relay: Relay, phase: Phase, *, is_last: bool, has_columns: bool) -> list[bytes]:
    """The server's payloads that lead to `phase`; with `is_last` one definition is left in it, else two."""
    number = 1 if is_last else 2
    speech = relay.speech
    begun = prepared_payload(1, parameters=number, columns=number if has_columns else 0)
    if phase is Phase.COLUMNS:
        return [lenenc(number)]
    if phase is Phase.COLUMNS_END:
        return [lenenc(1), column_payload()]
    if phase is Phase.ROWS:
        return [lenenc(1), column_payload(), *speech.between()]
    if phase in (Phase.FILE, Phase.FILE_END):
        return [b"\xfbf"]
    if phase is Phase.PARAMETERS:
        return [begun]
    if phase is Phase.PARAMETERS_END:
        return [begun, *[column_payload()] * number]
    if phase is Phase.FIELDS:
        return [prepared_payload(1, columns=number)]
    if phase is Phase.FIELDS_END:
        return [prepared_payload(1, columns=1), column_payload()]
    return []


def at(phase: Phase, *, deprecates_eof: bool, is_last: bool, has_columns: bool) -> tuple[Relay, int]:
    """A relay whose tracker is in `phase`, and the sequence id that is due."""
    relay = Relay(deprecates_eof=deprecates_eof, more=c.CLIENT_LOCAL_FILES)
    if phase is not Phase.IDLE:
        relay.client(REQUESTS.get(phase, query("select 1")))
    payloads = way_to(relay, phase, is_last=is_last, has_columns=has_columns)
    relay.answer(payloads)
    sequence = len(payloads) + 1
    if phase is Phase.FILE_END:
        relay.client(packet(b"", sequence))
        sequence += 1
    assert relay.tracker._phase == phase
    return relay, sequence


def payload_of(seen: Seen, relay: Relay) -> bytes:
    end = relay.speech.end
    return {
        Seen.OK: ok_payload(),
        Seen.OK_MORE: ok_payload(AUTOCOMMIT | MORE),
        Seen.ERR: err_payload(),
        Seen.COUNT: lenenc(2),
        Seen.LOCAL_INFILE: b"\xfbf",
        Seen.DEFINITION: column_payload(),
        Seen.DEFINITION_LAST: column_payload(),
        Seen.EOF: end(),
        Seen.EOF_CURSOR: end(AUTOCOMMIT | CURSOR),
        Seen.EOF_MORE: end(AUTOCOMMIT | MORE),
        Seen.ROW: row_payload(b"x"),
        Seen.PREPARED: prepared_payload(1),
        Seen.PREPARED_PARAMETERS: prepared_payload(1, parameters=2),
        Seen.PREPARED_COLUMNS: prepared_payload(1, columns=2),
        Seen.PREPARED_BOTH: prepared_payload(1, parameters=2, columns=2),
        Seen.TEXT: b"Uptime: 7",
        Seen.EVENT: b"\0" + bytes(19),
    }[seen]


FROM_CLIENT = frozenset({Seen.FILE_DATA, Seen.FILE_DONE})
ENDS = frozenset({Seen.EOF, Seen.EOF_CURSOR, Seen.EOF_MORE})
OF_PREPARE = frozenset({Seen.PREPARED, Seen.PREPARED_PARAMETERS, Seen.PREPARED_COLUMNS, Seen.PREPARED_BOTH})
DEFINITIONS = frozenset({Seen.DEFINITION, Seen.DEFINITION_LAST})
LISTS = frozenset({Phase.COLUMNS, Phase.PARAMETERS, Phase.FIELDS, Phase.LIST})
REFUSED_IN_LISTS = frozenset({Seen.OK, Seen.OK_MORE, Seen.LOCAL_INFILE}) | OF_PREPARE


def taken_as(phase: Phase, seen: Seen, payload: bytes) -> Seen:
    """A packet says what it is only by its place: a column count in the place of a row is a row."""
    if seen is Seen.ERR or seen in FROM_CLIENT:
        return seen
    if seen is Seen.EVENT and phase is not Phase.DUMP:
        seen = Seen.PREPARED if phase is Phase.PREPARED else Seen.OK
    if phase is Phase.ROWS and seen not in ENDS:
        return Seen.ROW
    if phase is Phase.STATISTICS:
        return Seen.TEXT
    if phase is Phase.DUMP and seen not in ENDS and payload[0] == c.OK:
        return Seen.EVENT
    if phase is Phase.LIST and seen is Seen.DEFINITION_LAST:
        return Seen.DEFINITION
    if phase in LISTS and seen not in ENDS | REFUSED_IN_LISTS | DEFINITIONS:
        return Seen.DEFINITION
    if seen in OF_PREPARE and phase is not Phase.PREPARED:
        return Seen.OK
    if phase is Phase.SIMPLE and seen is Seen.OK_MORE:
        return Seen.OK
    return seen


@pytest.mark.parametrize("deprecates_eof", [False, True], ids=["eof", "no-eof"])
@pytest.mark.parametrize("seen", list(Seen), ids=lambda seen: seen.name)
@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
def test_each_pair_is_declared_or_refused(phase: Phase, seen: Seen, deprecates_eof: bool) -> None:
    if deprecates_eof and phase in WITHOUT_EOF:
        assert next_phase(phase, seen, deprecates_eof=True) is None
        return
    for has_columns in (True, False):
        relay, sequence = at(
            phase, deprecates_eof=deprecates_eof, is_last=seen is Seen.DEFINITION_LAST, has_columns=has_columns
        )
        payload = b"" if seen in FROM_CLIENT else payload_of(seen, relay)
        taken = taken_as(phase, seen, payload)
        expected = next_phase(phase, taken, deprecates_eof=deprecates_eof, has_columns=has_columns)
        if seen in FROM_CLIENT:
            if phase is not Phase.FILE:
                assert expected is None
                continue
            relay.client(packet(b"data" if seen is Seen.FILE_DATA else b"", sequence))
            assert relay.tracker._phase == expected
            continue
        if phase is Phase.IDLE and seen is Seen.ERR:
            # The one exception: a server that ends the connection says why.
            relay.server(packet(err_payload(), 0))
            assert relay.tracker._phase == Phase.IDLE
            continue
        answer = packet(payload, sequence)
        if expected is None:
            with pytest.raises(ProtocolViolation, match="server"):
                relay.server(answer)
        else:
            relay.server(answer)
            assert Phase(relay.tracker._phase) is expected


def test_each_phase_is_reached_and_left() -> None:
    reached = set(NEXT.values()) | set(ANSWERS.values())
    assert reached == set(Phase)
    assert {phase for phase, _ in NEXT} == set(Phase) - {Phase.IDLE}


@pytest.mark.parametrize("code", range(256))
def test_each_command_is_answered_silent_our_own_or_unknown(code: int) -> None:
    relay = Relay(more=c.MARIADB_CLIENT_STMT_BULK_OPERATIONS)
    body = {c.COM_SET_OPTION: b"\0\0", c.COM_QUIT: b""}.get(code, bytes(9))
    sent = relay.client(command(code, body))
    if relay.tracker.wants_ids() is not None:
        relay.tracker.answer_ids({})
        relay.tracker.gate = GATE_OPEN
        sent = relay.go_on()
    if code in ANSWERS:
        assert sent
        assert relay.tracker._phase == ANSWERS[code]
    elif code in SILENT:
        # A statement that the backend does not have is nobody's.
        assert relay.tracker.is_idle()
        assert relay.to_client == b""
    elif code in OWN:
        assert sent == b""
        assert relay.to_client == b""
    else:
        assert sent == b""
        assert relay.to_client[4] == c.ERR


def test_the_numbers_of_the_compiled_tracker_are_those_of_the_modules() -> None:
    text = Path(state.__file__).with_name("tracker.pxd").read_text()
    pairs = re.findall(r"^    ([A-Z][A-Z0-9_]+) = (0x[0-9A-Fa-f]+|\d+)$", text, re.MULTILINE)
    assert len(pairs) > 60
    for name, value in pairs:
        module = next(module for module in (c, state, protocols.codes) if hasattr(module, name))
        assert getattr(module, name) == int(value, 0), name
