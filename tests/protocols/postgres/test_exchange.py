"""What an idle backend answers to the proxy's own questions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocols.errors import ProtocolViolation
from protocols.postgres.exchange import PostgresExchange
from protocols.postgres.lookup import UserInquiry
from protocols.postgres.messages import build
from protocols.postgres.temp import TempTables
from tests.protocols.postgres.relay import Relay, done, ready

OTHER_QUESTION = done("SELECT 0") + ready()


def row(*values: bytes) -> bytes:
    body = b"".join(len(value).to_bytes(4, "big") + value for value in values)
    return build(b"D", len(values).to_bytes(2, "big") + body)


def inspection() -> PostgresExchange:
    exchange = Relay().ledger.inspection()
    assert isinstance(exchange, PostgresExchange)
    return exchange


def dump(kind: bytes, name: bytes) -> Callable[[], PostgresExchange]:
    def make() -> PostgresExchange:
        temp = TempTables()
        temp.take(kind, name, b"a")
        temp.take(b"t:sequence", b"other", None)
        return temp.dump(1_000, {})

    return make


def role() -> PostgresExchange:
    exchange = UserInquiry("select usename, passwd from pg_shadow where usename = $1", "app")
    exchange.receive(row(b"app", b"secret") + OTHER_QUESTION)
    return exchange


@pytest.mark.parametrize("given", range(5))
@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (inspection, 3),
        (dump(b"t:columns", b"t"), 0),
        (dump(b"t:sequence", b"s"), 2),
        (role, 2),
    ],
    ids=["inspection", "rows of a table", "a sequence", "role"],
)
def test_a_row_of_other_columns_than_were_asked_for_is_the_servers_fault(
    make: Callable[[], PostgresExchange], columns: int, given: int
) -> None:
    exchange = make()
    if given == columns > 0:
        exchange.receive(row(*[b"t"] * given))
        return
    with pytest.raises(ProtocolViolation, match=f"a row of {given} columns where {columns} were asked for") as caught:
        exchange.receive(row(*[b"t"] * given))
    assert caught.value.peer == "server"
