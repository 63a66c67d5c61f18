"""One server seen from the admin side: what it is, how far it is, and the four acts of a switch.

This module is the contract; `postgres.py` and `mysql.py` fulfil it. It knows nothing of clients, sessions or workers,
and decides nothing: the switch says when to fence, promote or give back, an engine does it, proves it, and says how
long it may take.

Rules for every method:

- It has a deadline. Spans are seconds, points in time nanoseconds of the host's monotonic clock.
- A server that cannot be reached is `ConnectFailed`, a refused login `AuthRefused`, everything else `EngineError`;
  texts name the engine and what to do, never a secret. `probe` alone does not raise: being down is what it looks for.
- It may be repeated. `fence`, `unfence` and `promote` of something that is so already prove it again and return.
- It may be called from one task at a time, except `probe`, and `connections` with `ask_number`, which have connections of
  their own: health checks go on while a switch waits, or while an operator's query does.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Collection
from typing import Final, Literal

import msgspec

from proxy.engines.rows import RowReader
from proxy.errors import EngineError, Failure
from proxy.tls import LibraryTls

Flavour = Literal["postgresql", "mysql", "mariadb"]

TRANSACTIONS_MAX: Final = 10_000
"""Transactions of one listing."""
OBJECTS_MAX: Final = 100_000
"""Objects of one database that an inventory lists; of more, the first ones by name."""
DATABASES_MAX: Final = 50
"""Databases that an inventory looks into."""


class Role(enum.Enum):
    """What the server itself says it is."""

    PRIMARY = "primary"
    """Follows nobody. It may still refuse writes, see `EngineState.is_writable`."""
    STANDBY = "standby"
    """PostgreSQL: in recovery. MySQL: a replication source is configured."""


class Position(msgspec.Struct, frozen=True):
    """A place in the stream of changes; comparable by the server only. JSON keeps it for the journal."""

    kind: Literal["lsn", "mysql-gtid", "mariadb-gtid"]
    text: str

    sequences: dict[str, dict[str, int]] = {}
    """Logical replication, which leaves them out: by database and name the value to go on from."""

    def __str__(self) -> str:
        return self.text


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """What one probe found."""

    name: str
    is_reachable: bool
    why: str = ""
    """Why it is not reachable, or refused the login; one line."""
    failure: Failure | None = None
    """Of one that is not reachable: how it fails to answer."""
    flavour: Flavour = "postgresql"
    version: str = ""
    """As people write it: "PostgreSQL 18.4", "MariaDB 10.11.14", "MySQL 9.7.1"."""
    version_num: int = 0
    """For comparing: 180004, 101114, 90701."""
    server_id: str = ""
    """PostgreSQL: system identifier, equal on a primary and its standbys. MySQL: server uuid, MariaDB: server id."""
    instance: str = ""
    """What no other running server has: PostgreSQL: system identifier and start time. Empty where it is not known."""
    role: Role | None = None
    is_writable: bool = False
    """A new transaction of an ordinary account could write now."""
    is_fenced: bool = False
    """A primary that refuses writes by our kind of fence: read-only by configuration."""
    is_replicating: bool = False
    """A standby whose stream is connected and, on MySQL, whose applier runs."""
    upstream: str | None = None
    """host:port it replicates from, as the server knows it."""
    replication_error: str = ""
    """What the server says about a stream that does not run."""
    position: Position | None = None
    """Applied on a standby, written on a primary."""
    received: Position | None = None
    """Of a standby: what it has, applied or not, which a promotion applies before it ends. Of a PostgreSQL primary: what it
    has flushed, and a standby can have."""
    timeline: int = 0
    """PostgreSQL: number of the line of history it is on; each promotion begins a new one."""
    lag_bytes: int | None = None
    """PostgreSQL standby: received or announced, but not replayed yet."""
    lag_ms: float | None = None
    """Age of the newest change that is not applied yet; 0 if all that is known is applied. MySQL: whole seconds."""
    response_time_ms: float = 0.0
    """Round trip of one trivial query."""
    at_ns: int = 0


class FenceProof(msgspec.Struct, frozen=True, kw_only=True):
    """Made only when the fence was seen to hold; goes into the evidence report."""

    engine: str
    how: str
    """The setting, e.g. `default_transaction_read_only = on`."""
    refused_with: str
    """Code with which the server refused a real write of a fresh session: `25006`, `1290`; empty where only the setting
    could be read, because the admin account itself is exempt from it (MariaDB before an account without the right)."""
    sessions_ended: int
    """Client sessions that were not Turnout's own."""
    writers_left: int
    """Sessions with an open writing transaction after the fence: always 0."""
    prepared_in_doubt: list[str] = []
    """Prepared transactions (PostgreSQL gid, MySQL xid): they could still be committed on the source."""
    exempt: list[str] = []
    """Accounts or settings that the fence does not bind, e.g. `role etl in database shop`."""
    took_us: int
    at_ns: int


class CommitSample(msgspec.Struct, frozen=True, kw_only=True):
    """The newest commits of a server, by names that every server of the same lineage knows them by."""

    by: Literal["xid", "gtid", "position"]
    """What the names are. `position`: the server names no single commits, only how far it is in each of its streams, each
    name standing for all commits before it."""
    names: list[str]
    """The newest last."""


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to replicate from, and as whom."""

    name: str
    host: str
    port: int
    user: str
    password: str
    is_encrypted: bool = False
    """The connection must use TLS."""

    def __repr__(self) -> str:
        return f"<Leader {self.name} {self.host}:{self.port} as {self.user}>"


class MissingRight(msgspec.Struct, frozen=True):
    """Something the admin account cannot do, and the statement that gives it the right."""

    right: str
    grant: str


class OutsideSession(msgspec.Struct, frozen=True, kw_only=True):
    """A client session on the engine that did not come through Turnout."""

    pid: int
    user: str
    database: str
    client: str
    application: str
    state: str
    is_writing: bool
    age_s: float
    is_out_of_reach: bool = False
    """The admin account may not end it."""


class Capacity(msgspec.Struct, frozen=True):
    """Connections of ordinary accounts."""

    limit: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)


class OpenTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction of a client that is open now."""

    pid: int
    user: str
    database: str
    age_s: float
    is_idle: bool
    """It waits for its client, not for the server."""


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A replication slot of a PostgreSQL server."""

    name: str
    is_logical: bool
    is_active: bool
    follows: bool
    """It is there on standbys as well: a logical slot with `failover` (PostgreSQL 17)."""


class Follower(msgspec.Struct, frozen=True, kw_only=True):
    """A server that replicates from this one."""

    name: str
    """PostgreSQL: its application_name. MySQL: server id, MariaDB: the account's name."""
    client: str
    """Address it comes from, without the port."""


class Inventory(msgspec.Struct, kw_only=True):
    """What two servers should have alike, as one of them has it. What was not asked, or is not there, is empty."""

    settings: dict[str, str] = {}
    """Settings that change what a statement does or answers, by name."""
    handshake: dict[str, str] = {}
    """What clients were told at their login and may have remembered."""
    collations: dict[str, str] = {}
    """Version of the library that sorts, by database."""
    accounts: list[str] = []
    extensions: dict[str, str] = {}
    """PostgreSQL: version by `database.name`; MySQL: kind by name of active plugins."""
    unavailable: list[str] = []
    """Extensions that are installed in a database, but whose files this host does not have."""
    objects: dict[str, str] = {}
    """Digest of the definition by kind and full name: `table shop.public.orders`."""
    types: dict[str, int] = {}
    """PostgreSQL: number (OID) of each type that is not built in."""
    sequences: int = 0
    unlogged: list[str] = []
    """PostgreSQL: tables whose rows are in no WAL."""
    subscriptions: dict[str, str] = {}
    """Logical replication: enabled subscriptions with their slots on the other side."""
    subscribed: dict[str, str] = {}
    """State by table (`r`: ready), of those subscriptions."""
    tables: dict[str, str] = {}
    """Tables that have to be replicated, with the partitioned table they belong to, or nothing."""
    keyless: list[str] = []
    """Of these, the ones whose UPDATE and DELETE cannot be replicated: no primary key, no replica identity."""
    large_objects: list[str] = []
    """Databases that have some."""
    slots: list[Slot] = []
    followers: list[Follower] = []
    semi_sync: str = ""
    """MySQL: `on` or `off` for a primary that has the plugin."""
    blind: str = ""
    """Why `objects` is not the whole, and what to do about it; empty: it is."""


class Engine(abc.ABC):
    """See the module's docstring for the rules all methods keep."""

    name: str
    address: str
    """host:port"""

    @abc.abstractmethod
    async def connect(self, timeout_s: float = 5.0) -> None:
        """Open the connection that probes use. Not needed before `probe`, which connects by itself."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close everything; never raises. The engine can be used again and connects anew."""

    @abc.abstractmethod
    def use_tls(self, tls: Callable[[], LibraryTls]) -> None:
        """`tls` is asked before each connection, so that files of certificates may change. Connections that are open stay."""

    # --- looking -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def probe(self, timeout_s: float = 2.0) -> EngineState:
        """Look, never raise. Reconnects when needed."""

    @abc.abstractmethod
    async def connections(self, timeout_s: float = 1.0) -> int:
        """Connections that the server counts, by whomever. Raises EngineError."""

    @abc.abstractmethod
    async def ask_number(self, sql: str, timeout_s: float = 1.0) -> float | None:
        """The number in the first column of the first row of an operator's query; None: there is none. Raises
        EngineError."""

    async def written(self, timeout_s: float = 1.0) -> Position:
        """How far this server has written, for comparing only: not flushed anywhere, and cheap. Raises EngineError."""
        del timeout_s
        raise EngineError(f"engine {self.name} cannot be compared with others by its position")

    async def has_applied(self, position: Position, *, is_standby: bool, timeout_s: float = 1.0) -> bool:
        """Whether this server has everything up to `position`, and (`is_standby`) still follows another one. Raises
        EngineError."""
        del position, is_standby, timeout_s
        raise EngineError(f"engine {self.name} cannot be compared with others by its position")

    async def send_up_to(self, position: Position, timeout_s: float = 1.0) -> None:
        """Have its standbys get everything up to `position`, where this server would keep the last of it to itself until
        somebody commits. At most a few bytes are written, and nothing on a server that takes no writes. Raises EngineError."""
        del position, timeout_s

    @abc.abstractmethod
    async def permissions(self) -> list[MissingRight]:
        """What the admin account lacks for a switch, on this engine, in either direction. Empty: nothing."""

    @abc.abstractmethod
    async def sessions_outside(self, own_backend_pids: Collection[int]) -> list[OutsideSession]:
        """Client sessions that are neither in `own_backend_pids` nor Turnout's admin connections."""

    @abc.abstractmethod
    async def capacity(self) -> Capacity:
        """Connection slots for the sessions that will come."""

    @abc.abstractmethod
    async def prepared_in_doubt(self) -> list[str]:
        """Prepared transactions that nobody has ended."""

    @abc.abstractmethod
    async def transactions(self) -> list[OpenTransaction]:
        """Transactions that clients have open, the oldest first; at most `TRANSACTIONS_MAX`."""

    @abc.abstractmethod
    async def inventory(self, databases: Collection[str], *, with_schema: bool, timeout_s: float) -> Inventory:
        """What this server has, for a comparison with another one; on a connection of its own, so that it holds up no
        probe. `databases` empty: all that clients can reach. The server itself gives up at the deadline, too."""

    @abc.abstractmethod
    def row_reader(self) -> RowReader:
        """Reads rows on connections of its own, for a comparison of what two engines have. Close it."""

    @abc.abstractmethod
    async def explain(self, objects: Collection[str], timeout_s: float) -> dict[str, list[str]]:
        """Definitions of a few of the `objects` of an inventory, line by line; those that are gone are left out."""

    # --- a switch ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def prepare(self, timeout_s: float = 5.0) -> None:
        """Before a switch, off the critical path: open two admin connections and warm what `fence`, `position`,
        `reached` and `promote` will need, so that each of them is a few round trips. Removes nothing clients see; on
        a standby it clears a fence that a base backup or pg_rewind brought along (a standby is read-only anyway)."""

    async def arm(self, timeout_s: float = 5.0) -> None:  # noqa: B027  (not every server has anything to do here)
        """Before the sessions are held: the part of `fence` that binds none of the sessions there are. Optional.

        PostgreSQL: sessions to come are read-only from now on, proven by one. (Where the admin account is no superuser:
        the setting is written to disk, which takes several fsyncs, and not yet in force.) No worker may open a backend
        for a client meanwhile. Who arms must, whatever happens, go on to `fence` or `unfence`."""

    @abc.abstractmethod
    async def resolve_in_doubt(self, how: Literal["commit", "rollback"], timeout_s: float = 5.0) -> list[str]:
        """End every prepared transaction, in one way. Returns their names. Raises EngineError at the first that cannot
        be ended."""

    @abc.abstractmethod
    async def fence(self, own_backend_pids: Collection[int] = (), timeout_s: float = 5.0) -> FenceProof:
        """Make the server refuse writes, end client sessions that are not in `own_backend_pids`, and verify both.

        Turnout's own backends stay connected, since they must all be at a boundary when this is called: an open
        writing transaction among them is an error. Raises EngineError if the proof fails or time runs out; the
        caller then calls `unfence`."""

    @abc.abstractmethod
    async def unfence(self, timeout_s: float = 1.0) -> None:
        """Writable again, and verified by a real write. Also right when nothing is fenced."""

    @abc.abstractmethod
    async def position(self) -> Position:
        """How far the source has written, durably. After the fence: the end of everything ever acknowledged."""

    @abc.abstractmethod
    async def reached(self, position: Position) -> bool:
        """True once this standby has applied everything up to `position`."""

    @abc.abstractmethod
    async def wait_reached(self, position: Position, timeout_s: float) -> bool:
        """True as soon as `reached`, false at the deadline. Looks about every millisecond."""

    @abc.abstractmethod
    async def promote(self, timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        """Make this standby a writable primary, and verify it by a real write. Of a writable primary: only verify.
        `is_asked`: somebody else was asked to promote it; wait for that."""

    async def known_transactions(self, ids: Collection[str], timeout_s: float = 2.0) -> frozenset[str]:
        """Of a standby whose source is gone: those of the source's transactions it has seen anything of. Their numbers
        mean the same after its promotion. Applies what it has received first, as far as the time allows."""
        del ids, timeout_s
        return frozenset()

    async def outcomes(
        self, ids: Collection[str], known: Collection[str], timeout_s: float = 2.0
    ) -> dict[str, Literal["committed", "aborted"]]:
        """After the promotion: what became of the former source's transactions. `known` is what `known_transactions` said
        before. Whatever is not certain is left out."""
        del ids, known, timeout_s
        return {}

    # --- afterwards --------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def recent_commits(self, most: int) -> CommitSample:
        """The newest commits of this server, the fenced source of a switch: at most `most`. Raises EngineError, also where
        other servers know commits by other names."""

    @abc.abstractmethod
    async def lacking(self, sample: CommitSample) -> list[str]:
        """Names of a sample's commits that this server, the target of the switch, does not have."""

    async def follow(self, leader: Leader, timeout_s: float = 10.0) -> str:
        """Make this fenced server, which was the source of a switch, or this standby of a source that failed, replicate
        from `leader`, which was the target, and wait until it does. It stays read-only. Returns how, in a few words.
        Raises EngineError."""
        del timeout_s
        raise EngineError(f"engine {self.name} cannot be made to follow {leader.name} by Turnout")

    async def slot_used(self) -> str:
        """PostgreSQL: name of the replication slot by which this standby follows; empty: none."""
        return ""

    async def make_slot(self, name: str) -> None:  # noqa: B027  (most have none)
        """Make a replication slot for a standby, unless it is there."""

    async def forget_source(self, timeout_s: float = 10.0) -> list[str]:
        """The target of a switch, once the source follows it: let go of what it followed the source by. Returns names
        of slots on the source that nobody uses any more."""
        del timeout_s
        return []

    async def drop_slots(self, names: Collection[str], timeout_s: float = 10.0) -> None:  # noqa: B027  (most have none)
        """Drop replication slots of these names that nobody reads from."""

    async def abandon(self) -> None:  # noqa: B027  (most leave nothing behind)
        """The target of a switch that was undone: remove what `prepare` made. May run beside the next switch."""
