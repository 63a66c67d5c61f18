"""The tables of the admin console: columns as PgBouncer 1.24 has them, and how Turnout fills them.

Columns are (name, letter), the letters being those of PgBouncer's source (`protocols.postgres.console.TYPES`). A test holds them
against a running PgBouncer. Rows are about PostgreSQL services only: whoever reads them knows nothing else. What Turnout
has no word for is 0 or null; docs/console.md says which.

Pure: everything is handed in.
"""

from __future__ import annotations

import time
import typing
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from protocols.postgres.console import Value
from proxy import ipc
from proxy.config import Config, ServiceConfig, masked, parse_address
from proxy.control.standstill import Standstills
from proxy.switch.plan import SwitchRecord
from proxy.switch.readiness import Check
from proxy.switch.views import ServiceView

Columns = Sequence[tuple[str, str]]
Rows = list[Sequence[Value]]

_Key = TypeVar("_Key", bound=Hashable)

INT4_MAX: Final = 2**31 - 1


def _columns(letters: str, names: str) -> Columns:
    return tuple(zip(names.split(), letters, strict=True))


_SOCKET: Final = (
    "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us "
    "close_needed ptr link remote_pid tls application_name prepared_statements id"
)
_BUFFERS: Final = "recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail"
_COUNTED: Final = (
    "server_assignment_count xact_count query_count {received} {sent} xact_time query_time wait_time "
    "client_parse_count server_parse_count bind_count"
)

CLIENTS: Final = _columns("ssssssisissiiississii", _SOCKET)
SERVERS: Final = CLIENTS
SOCKETS: Final = _columns("ssssssisissiiississii" + "iiiiiii", f"{_SOCKET} {_BUFFERS}")
DATABASES: Final = _columns(
    "ssissiiiissiiiiii",
    "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode "
    "load_balance_hosts max_connections current_connections max_client_connections current_client_connections paused "
    "disabled",
)
POOLS: Final = _columns(
    "ssiiiiiiiiiiiiiss",
    "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel "
    "sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
)
USERS: Final = _columns(
    "ssssiiii",
    "name pool_size reserve_pool_size pool_mode max_user_connections current_connections max_user_client_connections "
    "current_client_connections",
)
LISTS: Final = _columns("si", "list items")
CONFIG: Final = _columns("ssss", "key value default changeable")
STATE: Final = _columns("ss", "key value")
VERSION: Final = _columns("s", "version")
MEM: Final = _columns("siiii", "name size used free memtotal")
DNS_HOSTS: Final = _columns("sqs", "hostname ttl addrs")
DNS_ZONES: Final = _columns("sqi", "zonename serial count")
PEERS: Final = _columns("isii", "peer_id host port pool_size")
PEER_POOLS: Final = _columns("iiiii", "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login")
_TOTAL_NAMES: Final = _COUNTED.format(received="received", sent="sent").split()
_AVG_NAMES: Final = _COUNTED.format(received="recv", sent="sent").split()
STATS: Final = (
    ("database", "s"),
    *((f"total_{name}", "N") for name in _TOTAL_NAMES),
    *((f"avg_{name}", "N") for name in _AVG_NAMES),
)
STATS_TOTALS: Final = (
    ("database", "s"),
    *((name, "N") for name in _COUNTED.format(received="bytes_received", sent="bytes_sent").split()),
)
_PARSED: Final = ("client_parse_count", "server_parse_count", "bind_count")
STATS_AVERAGES: Final = tuple((f"avg_{name}" if name in _PARSED else name, letter) for name, letter in STATS_TOTALS)
TOTALS: Final = _columns("sN", "name value")
_TOTALS_NAMES: Final = (
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
)

# What PgBouncer has not.

PREPARED_STATEMENTS: Final = _columns("issi", "id database user prepared_statements")
ENGINES: Final = _columns(
    "ssssssqqNs", "service engine address active role version lag_bytes connections response_time_us why"
)
SESSIONS: Final = _columns(
    "issssssssssqNN",
    "id service protocol user database client engine standing portability pins in_transaction requests age_us idle_us",
)
SWITCHES: Final = _columns("ssssssssNs", "id service source target strategy phase began_at ended_at cutover_us error")
CHECKS: Final = _columns("sssss", "check verdict found limit remedy")


class Sight(NamedTuple):
    """What the tables are made of."""

    config: Config
    services: Mapping[str, ServiceView]
    """The PostgreSQL services."""
    standstills: Standstills
    sessions: Sequence[ipc.Session] = ()
    backends: Sequence[ipc.Backend] = ()
    workers: Sequence[ipc.WorkerFigures] = ()


# --- who is there -------------------------------------------------------------------------------------------------


def timestamp(at: float) -> str:
    """Seconds since 1970, as PgBouncer writes them in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _end(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else 0


def _server_pointer(engine: str, process_id: int) -> str:
    """A name for one backend, the same in all tables."""
    return f"0x{zlib.crc32(engine.encode()) << 32 | process_id:x}"


def client_rows(sight: Sight, now: float, *, prefix: str = "") -> Rows:
    """SHOW CLIENTS; `prefix` is what SHOW SOCKETS puts before the states."""
    return [_client_row(one, now, prefix) for one in sight.sessions if one.service in sight.services]


def client_state(session: ipc.Session) -> str:
    """`waiting` for a backend, `active` with one, else `idle`."""
    if session.waiting_s:
        return "waiting"
    return "active" if session.engine else "idle"


def _client_row(session: ipc.Session, now: float, prefix: str) -> Sequence[Value]:
    state = client_state(session)
    addr, port = _end(session.client)
    local_addr, local_port = _end(session.local)
    wait_us = int(session.waiting_s * 1e6)
    return (
        "C",
        session.user,
        session.database,
        session.replication,
        prefix + state,
        addr,
        port,
        local_addr,
        local_port,
        timestamp(now - session.age_s),
        timestamp(now - session.idle_s),
        wait_us // 1_000_000,
        wait_us % 1_000_000,
        0,
        f"0x{session.id:x}",
        _server_pointer(session.engine, session.backend_pid) if session.engine else "",
        0,
        session.tls,
        session.application,
        session.statements,
        session.id,
    )


def server_rows(sight: Sight, now: float, *, prefix: str = "") -> Rows:
    """SHOW SERVERS."""
    return [_server_row(one, now, prefix) for one in sight.backends if one.service in sight.services]


def _server_row(backend: ipc.Backend, now: float, prefix: str) -> Sequence[Value]:
    addr, port = _end(backend.address)
    local_addr, local_port = _end(backend.local)
    return (
        "S",
        backend.user,
        backend.database,
        "none",
        prefix + backend.state,
        addr,
        port,
        local_addr,
        local_port,
        timestamp(now - backend.age_s),
        timestamp(now - backend.idle_s),
        0,
        0,
        int(backend.is_retired),
        _server_pointer(backend.engine, backend.process_id),
        f"0x{backend.session:x}" if backend.session else "",
        backend.process_id,
        backend.tls,
        backend.application,
        backend.statements,
        backend.process_id,
    )


def socket_rows(sight: Sight, now: float, *, is_active: bool = False) -> Rows:
    """SHOW SOCKETS, or ACTIVE_SOCKETS: clients whose words have not gone on to a server."""
    clients = client_rows(sight, now, prefix="cl_")
    servers = [] if is_active else server_rows(sight, now, prefix="sv_")
    if is_active:
        clients = [row for row in clients if row[4] == "cl_waiting"]
    return [(*row, *(0,) * len(_BUFFERS.split())) for row in (*clients, *servers)]


def prepared_rows(sight: Sight) -> Rows:
    """Sessions that have prepared statements."""
    return [
        (one.id, one.database, one.user, one.statements)
        for one in sight.sessions
        if one.service in sight.services and one.statements
    ]


# --- pools, databases, users --------------------------------------------------------------------------------------


def _pool_user(sight: Sight, session: ipc.Session) -> str:
    """The user of the session's backends."""
    view = sight.services[session.service]
    login = sight.config.service[session.service].engine[session.engine or view.active].login
    return session.user if login is None else login.user


def _own(sight: Sight) -> list[ipc.Session]:
    """Sessions of the services that are shown, whose engine is still known."""
    return [
        one
        for one in sight.sessions
        if one.service in sight.services
        and (one.engine or sight.services[one.service].active) in sight.config.service[one.service].engine
    ]


def pool_rows(sight: Sight) -> Rows:
    """SHOW POOLS: one row for each database and user, whatever engines they have backends on."""
    counts: dict[tuple[str, str], dict[str, float]] = {}
    modes: dict[tuple[str, str], str] = {}

    def row_of(service: str, database: str, user: str) -> dict[str, float]:
        modes[database, user] = sight.services[service].pool_mode
        return counts.setdefault((database, user), {})

    def add(row: dict[str, float], name: str, count: float) -> None:
        row[name] = row.get(name, 0) + count

    for session in _own(sight):
        row = row_of(session.service, session.database, _pool_user(sight, session))
        add(row, "cl_waiting" if session.waiting_s else "cl_active", 1)
        row["wait"] = max(row.get("wait", 0.0), session.waiting_s)
    for worker in sight.workers:
        for figures in worker.services:
            if figures.service not in sight.services:
                continue
            for pool in figures.pools:
                row = row_of(figures.service, pool.database, pool.user)
                add(row, "sv_active", pool.in_use - pool.cancelling)
                add(row, "sv_being_canceled", pool.cancelling)
                add(row, "sv_idle", pool.idle)
                add(row, "sv_tested", pool.checking)
                add(row, "sv_login", pool.opening)
    rows: Rows = []
    for (database, user), row in sorted(counts.items()):
        wait_us = int(row.get("wait", 0.0) * 1e6)
        values = {**row, "maxwait": wait_us // 1_000_000, "maxwait_us": wait_us % 1_000_000}
        numbers = [int(values.get(name, 0)) for name, letter in POOLS if letter == "i"]
        rows.append((database, user, *numbers, modes[database, user], None))
    return rows


def databases_of(sight: Sight, service: str) -> list[str]:
    """Names in the config; of a service that takes any name, those that somebody has asked for."""
    named = sight.services[service].databases
    if named:
        return list(named)
    seen = {one.database for one in sight.sessions if one.service == service and one.database}
    seen.update(
        one.database for worker in sight.workers for figures in worker.services if figures.service == service
        for one in figures.databases
    )  # fmt: skip
    still = sight.standstills.of(service)
    return sorted(seen.union(still.paused, still.disabled))


def database_rows(sight: Sight) -> Rows:
    """SHOW DATABASES."""
    backends = _backends(sight, lambda pool: (pool.service, pool.database))
    clients = Counter((one.service, one.database) for one in sight.sessions)
    rows: Rows = []
    for name, view in sight.services.items():
        config = sight.config.service[name]
        engine = config.engine[view.active]
        host, port = parse_address(engine.address)
        still = sight.standstills.of(name)
        for database in databases_of(sight, name):
            rows.append((
                database,
                host,
                port,
                database,
                engine.login.user if engine.login is not None else None,
                config.pool_size,
                config.min_pool_size,
                config.reserve_pool_size,
                int(config.server_lifetime_s),
                view.pool_mode,
                None,
                config.max_db_connections,
                backends[name, database],
                0,
                clients[name, database],
                int(database in still.paused),
                int(database in still.disabled),
            ))  # fmt: skip
    return rows


def _backends(sight: Sight, by: Callable[[ipc.PoolFigures], _Key]) -> Counter[_Key]:
    """Backends of the services that are shown, counted by what is said of their pools. In one pass: there may be thousands
    of databases, of users and of pools."""
    counts: Counter[_Key] = Counter()
    for worker in sight.workers:
        for figures in worker.services:
            if figures.service in sight.services:
                for pool in figures.pools:
                    counts[by(pool)] += pool.idle + pool.in_use + pool.opening
    return counts


def user_rows(sight: Sight) -> Rows:
    """SHOW USERS: those that are there."""
    limits: dict[str, ServiceConfig] = {}
    sessions = _own(sight)
    clients, backends = Counter(one.user for one in sessions), _backends(sight, lambda pool: pool.user)
    for session in sessions:
        limits.setdefault(session.user, sight.config.service[session.service])
    for worker in sight.workers:
        for figures in worker.services:
            if figures.service in sight.services:
                for pool in figures.pools:
                    limits.setdefault(pool.user, sight.config.service[figures.service])
    return [
        (
            user,
            "",
            "",
            None,
            config.max_user_connections,
            backends[user],
            0,
            clients[user],
        )
        for user, config in sorted(limits.items())
    ]


def list_rows(sight: Sight) -> Rows:
    """SHOW LISTS."""
    sessions = _own(sight)
    counts = {
        "databases": sum(len(databases_of(sight, name)) for name in sight.services),
        "users": len(user_rows(sight)),
        "peers": 0,
        "pools": len(pool_rows(sight)),
        "peer_pools": 0,
        "free_clients": 0,
        "used_clients": len(sessions),
        "login_clients": sum(one.standing == "arriving" for one in sessions),
        "free_servers": 0,
        "used_servers": _backends(sight, lambda pool: pool.service).total(),
        "dns_names": 0,
        "dns_zones": 0,
        "dns_queries": 0,
        "dns_pending": 0,
    }
    return list(counts.items())


def mem_rows(sight: Sight) -> Rows:
    """SHOW MEM: Turnout has no object caches; a row for each worker's resident memory."""
    return [
        (f"worker_{one.worker}", size := min(one.rss_bytes, INT4_MAX), 1, 0, size)
        for one in sorted(sight.workers, key=lambda one: one.worker)
    ]


def state_rows(sight: Sight) -> Rows:
    """SHOW STATE."""
    is_paused = sight.standstills.is_paused
    return [("active", "no" if is_paused else "yes"), ("paused", "yes" if is_paused else "no"), ("suspended", "no")]


# --- what was done ------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """What clients of one database did, in the order of the columns."""

    assignments: int = 0
    transactions: int = 0
    queries: int = 0
    received: int = 0
    sent: int = 0
    transaction_us: int = 0
    query_us: int = 0
    wait_us: int = 0
    client_parses: int = 0
    server_parses: int = 0
    binds: int = 0


def counts_of(sight: Sight) -> dict[str, Counts]:
    """By database, of all workers together."""
    found: dict[str, Counts] = {}
    for worker in sight.workers:
        for figures in worker.services:
            if figures.service not in sight.services:
                continue
            for one in figures.databases:
                new = Counts(
                    assignments=one.assignments_total,
                    transactions=one.transactions_total,
                    queries=one.requests_total,
                    received=one.bytes_in_total,
                    sent=one.bytes_out_total,
                    transaction_us=one.transaction_us_total,
                    query_us=one.request_us_total,
                    wait_us=one.wait_us_total,
                )
                before = found.get(one.database, Counts())
                found[one.database] = Counts(*map(sum, zip(before, new, strict=True)))
    return found


def averages(now: Counts, before: Counts, span_s: float) -> Counts:
    """Of a span: counts and bytes by the second, times by what they were spent on. A worker that was replaced began anew, and
    makes no number negative."""
    if span_s <= 0:
        return Counts()
    spent = Counts(*(max(0, new - old) for new, old in zip(now, before, strict=True)))
    by_second = Counts(*(int(one / span_s) for one in spent))
    return by_second._replace(
        transaction_us=spent.transaction_us // spent.transactions if spent.transactions else 0,
        query_us=spent.query_us // spent.queries if spent.queries else 0,
        wait_us=spent.wait_us // spent.assignments if spent.assignments else 0,
    )


class Periods:
    """Counts of some time ago, for the averages: those of the period before the running one, as in PgBouncer."""

    def __init__(self, now_s: float) -> None:
        self._older: tuple[float, dict[str, Counts]] = (now_s, {})
        self._newer = self._older

    def turn(self, now_s: float, counts: dict[str, Counts]) -> None:
        """A period has ended."""
        self._older, self._newer = self._newer, (now_s, counts)

    def averages(self, now_s: float, counts: Mapping[str, Counts]) -> dict[str, Counts]:
        """By database."""
        at, before = self._older
        return {name: averages(now, before.get(name, Counts()), now_s - at) for name, now in counts.items()}


def stats_rows(counts: Mapping[str, Counts], averaged: Mapping[str, Counts]) -> Rows:
    """SHOW STATS."""
    return [(name, *counts[name], *averaged[name]) for name in sorted(counts)]


def sums_rows(counts: Mapping[str, Counts]) -> Rows:
    """SHOW STATS_TOTALS, SHOW STATS_AVERAGES."""
    return [(name, *counts[name]) for name in sorted(counts)]


def totals_rows(counts: Mapping[str, Counts], averaged: Mapping[str, Counts]) -> Rows:
    """SHOW TOTALS."""
    rows: Rows = []
    for prefix, found in (("total", counts), ("avg", averaged)):
        summed = Counts(*map(sum, zip(*found.values(), strict=True))) if found else Counts()
        rows += [(f"{prefix}_{name}", value) for name, value in zip(_TOTALS_NAMES, summed, strict=True)]
    return rows


# --- the config ---------------------------------------------------------------------------------------------------


def config_rows(config: Config) -> Rows:
    """SHOW CONFIG: every key by its whole name; secrets are never shown."""
    return list(_config_rows("", config, masked(config)))


def _config_rows(name: str, part: Any, shown: Any) -> Iterator[Sequence[Value]]:
    if isinstance(part, msgspec.Struct):
        bare = type(part)(**_required(part))
        for field in msgspec.structs.fields(part):
            inner = shown.get(field.name)
            key = f"{name}.{field.name}" if name else field.name
            if isinstance(inner, dict) and inner.keys() == {"value", "origin"}:
                default = None if field.required else _text(getattr(bare, field.name))
                yield key, _text(inner["value"]), default, _changeable(field.type)
            else:
                yield from _config_rows(key, getattr(part, field.name), inner)
    elif isinstance(part, dict):
        for key, one in part.items():
            yield from _config_rows(f"{name}.{key}", one, shown[key])
    elif isinstance(part, list):
        for index, one in enumerate(part):
            yield from _config_rows(f"{name}.{index}", one, shown[index])


def _required(part: msgspec.Struct) -> dict[str, Any]:
    """What a struct of this type has to be given."""
    return {field.name: getattr(part, field.name) for field in msgspec.structs.fields(part) if field.required}


def _changeable(of: Any) -> str:
    """A reload applies it."""
    extra = next((one.extra for one in typing.get_args(of) if isinstance(one, msgspec.Meta)), None)
    return "yes" if extra and extra.get("reload") else "no"


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "1" if value else "0"
        case float():
            return f"{value:g}"
        case list() | dict():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)


# --- Turnout's own ------------------------------------------------------------------------------------------------


def engine_rows(views: Iterable[ServiceView]) -> Rows:
    """SHOW ENGINES: of both protocols."""
    rows: Rows = []
    for view in views:
        for engine in view.engines:
            state, figures = engine.state, engine.figures
            is_known = state is not None and state.is_reachable
            took_ms = figures.response_time_ms if figures is not None else None
            rows.append((
                view.name,
                engine.name,
                engine.address,
                "yes" if engine.is_active else "no",
                state.role.value if state is not None and state.role is not None and is_known else "unknown",
                state.version if state is not None and is_known else None,
                state.lag_bytes if state is not None else None,
                figures.active_connections if figures is not None else None,
                None if took_ms is None else int(took_ms * 1000),
                state.why if state is not None else "not probed yet",
            ))  # fmt: skip
    return rows


def session_rows(sessions: Iterable[ipc.Session]) -> Rows:
    """SHOW SESSIONS: of both protocols."""
    return [
        (
            one.id,
            one.service,
            one.protocol,
            one.user,
            one.database,
            one.client,
            one.engine or None,
            one.standing,
            one.portability,
            ", ".join(one.pins),
            "yes" if one.in_transaction else "no",
            one.requests,
            int(one.age_s * 1e6),
            int(one.idle_s * 1e6),
        )
        for one in sorted(sessions, key=lambda one: (one.worker, one.id))
    ]


def check_rows(checks: Iterable[Check]) -> Rows:
    """SWITCH … DRY_RUN: what would hold the switch up, or does not."""
    return [(one.name, one.verdict, one.found, one.limit, one.remedy) for one in checks]


def switch_rows(records: Iterable[SwitchRecord]) -> Rows:
    """SHOW SWITCHES: newest first."""
    rows: Rows = []
    for one in records:
        cutover_ms = one.figures.get("cutover_ms")
        rows.append((
            one.id,
            one.service,
            one.source,
            one.target,
            one.strategy,
            one.phase.value,
            timestamp(one.began_at),
            timestamp(one.ended_at) if one.ended_at is not None else None,
            int(cutover_ms * 1000) if isinstance(cutover_ms, int | float) else None,
            one.error,
        ))  # fmt: skip
    return rows
