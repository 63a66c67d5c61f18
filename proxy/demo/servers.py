"""The two kinds of server pair behind one face: what the demo does with them besides switching."""

from __future__ import annotations

import abc
import shutil

from proxy.demo.load import ACCOUNTS_PER_CLIENT, START_BALANCE
from proxy.demo.options import DemoOptions
from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair, Setup

SPARE_CONNECTIONS = 60
"""For replication, admin connections and the demo's own, above one backend for each client."""


class Bank(abc.ABC):
    """Accounts and a journal on a pair of servers."""

    admin_user: str
    auth_method: str
    pair: PostgresPair | MariaDBPair | MySQLPair

    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        self.accounts = options.clients * ACCOUNTS_PER_CLIENT
        self.max_connections = options.clients + SPARE_CONNECTIONS

    @abc.abstractmethod
    async def open(self) -> None:
        """Start the pair and fill the tables. Raises ServerFailed."""

    @abc.abstractmethod
    async def version(self) -> str: ...

    @abc.abstractmethod
    async def journal_ids(self) -> set[int]:
        """Every id in the journal of the last primary."""

    @abc.abstractmethod
    async def total(self) -> int:
        """Sum of all balances there: money is only moved."""

    def setup(self) -> Setup:
        """A Turnout before the pair."""
        return Setup(
            protocol=self.options.protocol,
            engines={server.name: server.address for server in self.pair.servers()},
            admin_user=self.admin_user,
            admin_password="secret",
            users={"app": "secret"},
            auth_method=self.auth_method,
            pool_mode=self.options.pool_mode,
            workers=self.options.workers,
            service={"pool_size": self.options.clients + 10},
        )


class PostgresBank(Bank):
    admin_user = "postgres"
    auth_method = "scram-sha-256"
    pair: PostgresPair

    async def open(self) -> None:
        self.pair = await PostgresPair.create(max_connections=self.max_connections)
        connection = await self.pair.primary.connect("app", "app")
        try:
            await connection.execute(
                "create table account (id int primary key, balance bigint not null) with (fillfactor = 50);"
                "create table journal (id bigint primary key, source int, target int, amount int)"
            )
            await connection.execute(
                "insert into account select i, $2::int from generate_series(0, $1::int - 1) i",
                self.accounts,
                START_BALANCE,
            )
        finally:
            await connection.close()

    async def version(self) -> str:
        return f"PostgreSQL {await self.pair.primary.fetchval('show server_version')}"

    async def journal_ids(self) -> set[int]:
        connection = await self.pair.primary.connect("app")
        try:
            return {row[0] for row in await connection.fetch("select id from journal")}
        finally:
            await connection.close()

    async def total(self) -> int:
        return int(await self.pair.primary.fetchval("select sum(balance)::bigint from account", database="app"))


class MySqlBank(Bank):
    admin_user = "turnout"
    auth_method = "mysql_native_password"
    pair: MariaDBPair | MySQLPair

    async def open(self) -> None:
        options = [f"--max-connections={self.max_connections}"]
        # Real MySQL where MariaDB is not installed: it has to be fetched.
        kind = MariaDBPair if _has_mariadb() or not shutil.which("apt-get") else MySQLPair
        self.pair = await kind.create(options=options)
        values = ",".join(f"({number},{START_BALANCE})" for number in range(self.accounts))
        await self.pair.primary.execute(
            "create table account (id int primary key, balance bigint not null)",
            "create table journal (id bigint primary key, source int, target int, amount int)",
            f"insert into account values {values}",
            database="app",
        )

    async def version(self) -> str:
        version = str(await self.pair.primary.fetchval("select version()")).partition("-")[0]
        return f"{self.pair.primary.flavour} {version}"

    async def journal_ids(self) -> set[int]:
        rows = await self.pair.primary.fetch("select id from journal", database="app")
        return {row["id"] for row in rows}

    async def total(self) -> int:
        return int(await self.pair.primary.fetchval("select sum(balance) from account", database="app"))


def _has_mariadb() -> bool:
    return shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/libexec") is not None


def bank_for(options: DemoOptions) -> Bank:
    """The one for the protocol, not opened."""
    return PostgresBank(options) if options.protocol == "postgresql" else MySqlBank(options)
