"""The tables that writers work on, and what is in them."""

from __future__ import annotations

from typing import Any, Final

from tests.soak.history import Found, found_in
from tests.soak.writers import ACCOUNTS, START_BALANCE

MONEY: Final = ACCOUNTS * START_BALANCE
NAMES: Final = "account, journal, appended"
_BALANCES: Final = ", ".join(f"({number}, {START_BALANCE})" for number in range(ACCOUNTS))

DROP: Final = f"drop table if exists {NAMES}"
FILL: Final = f"insert into account values {_BALANCES}"


def creation(*, is_postgres: bool) -> list[str]:
    """The journal has no key of its own: what is there twice must show."""
    account = "create table account (id int primary key, balance bigint not null)"
    if is_postgres:
        return [
            account,
            "create table journal (id bigint not null)",
            "alter table journal replica identity full",
            "create table appended (list int primary key, items text not null)",
            f"grant all on {NAMES} to app",
        ]
    return [
        account,
        "create table journal (id bigint not null, key (id))",
        "create table appended (list int primary key, items mediumtext not null)",
    ]


async def run(server: Any, *statements: str, is_postgres: bool) -> None:
    """Straight at one server, in database app."""
    if is_postgres:
        for statement in statements:
            await server.execute(statement, database="app")
    else:
        await server.execute(*statements, database="app")


async def found_on(server: Any, *, is_postgres: bool) -> Found:
    """What is there now."""
    journal, appended = "select id from journal", "select list, items from appended"
    money = "select cast(sum(balance) as decimal) from account"
    if is_postgres:
        connection = await server.connect("app")
        try:
            return found_in(
                [row[0] for row in await connection.fetch(journal)],
                {row[0]: row[1] for row in await connection.fetch(appended)},
                int(await connection.fetchval(money)),
            )
        finally:
            await connection.close()
    return found_in(
        [row["id"] for row in await server.fetch(journal, database="app")],
        {row["list"]: row["items"] for row in await server.fetch(appended, database="app")},
        int(await server.fetchval(money, database="app")),
    )
