"""What the door takes and gives, and the bounds of its lists. Plain values; every face renders them in its own way."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from proxy import ipc
from proxy.config import NAME, EngineConfig, parse_address
from proxy.errors import ControlError
from proxy.switch.readiness import Check
from proxy.switch.views import EngineView, ServiceView, WorkerView
from proxy.tls import MYSQL_NAMES, TlsProblem, TlsSetting, engine_tls

SWITCHES_MAX: Final = 1_000
"""Most records of one listing."""

DECISIONS_MAX: Final = 1_000
"""Most decisions of policies of one listing."""

AUDIT_MAX: Final = 1_000
"""Most entries of one listing."""

DELIVERIES_MAX: Final = 1_000
"""Most messages of one listing."""

SILENCE_S_MAX: Final = 30 * 86_400.0
"""Longest silence; nobody remembers one for longer."""


class SwitchRefused(ControlError):
    """A switch was refused by a check. `checks` has all of them, the failed ones among them."""

    status = 409

    def __init__(self, text: str, *, hint: str, switch: str, checks: list[Check]) -> None:
        super().__init__(text, hint=hint)
        self.switch = switch
        self.checks = checks


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service with the sums of what its workers count."""

    view: ServiceView
    sessions: int
    """Client connections now."""
    held: int
    """Of these, held by a switch."""
    requests_total: int
    """Since the workers began; so are the other totals."""
    transactions_total: int
    errors_total: int
    grades: dict[str, int] = {}
    """Sessions by portability, A to D; of many sessions, as of some seconds ago."""
    pinned: dict[str, int] = {}
    """Sessions by what they cannot be carried for; the same."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole Turnout at a glance."""

    version: str
    started_at: float
    """Seconds since 1970."""
    is_ready: bool
    """Every worker has its config and its listeners are open."""
    services: list[ServiceStatus]
    workers: list[WorkerView]


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, with the service it belongs to."""

    service: str
    engine: EngineView


class SessionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions; None: whichever."""

    service: str | None = None
    user: str | None = None
    database: str | None = None
    engine: str | None = None
    portability: str | None = None
    """A, B, C or D."""
    standing: str | None = None
    in_transaction: bool | None = None

    def fits(self, session: ipc.Session) -> bool:
        """All that is asked for is so."""
        wanted = msgspec.structs.asdict(self)
        return all(getattr(session, name) == value for name, value in wanted.items() if value is not None)


class SessionPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a list of sessions."""

    total: int
    """Sessions that fit, on all pages."""
    sessions: list[ipc.Session]


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """The backends of one (service, engine, database, user), in all workers together."""

    service: str
    engine: str
    database: str
    user: str
    idle: int
    """Open, and nobody's."""
    in_use: int
    waiting: int
    """Clients that wait for one."""


class StandstillRow(msgspec.Struct, frozen=True, kw_only=True):
    """What operators have stopped of one PostgreSQL service."""

    service: str
    is_paused: bool
    """All of its databases are."""
    paused: list[str]
    """Databases that are by their names."""
    disabled: list[str]
    """Databases that nobody can log in to."""
    backends_left: int | None
    """Of what is paused: the pause is done when none is left. None: a worker does not answer."""


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload of the config came to. A line is `service.shop.pool_size: 200 -> 300`."""

    added: list[str]
    """Engines that are there now: `service.shop.engine.green`."""
    removed: list[str]
    """Engines that are there no more."""
    applied: list[str]
    """What else was changed in the file, and is in force now."""
    kept: list[str]
    """Engines that are not as the file says, and why: the file has one no more that serves, or a command added or removed
    it."""
    needs_restart: list[str]
    """Changed in the file, and not in force."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine to be added. The keys are those of `[service.NAME.engine.NAME]` in the config, but for `login`."""

    address: str
    """host:port of the server."""
    role: Literal["primary", "standby", "secondary"] = "standby"
    server_tls_sslmode: TlsSetting = "prefer"
    server_tls_ca_file: str = ""
    """A path on Turnout's machine; so are the other files."""
    server_tls_cert_file: str = ""
    server_tls_key_file: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The readiness report: may a switch to `target` begin?"""

    service: str
    target: str
    is_ready: bool
    """No check refuses the switch. Warnings do not hold it up."""
    checks: list[Check]


def engine_config(name: str, spec: EngineSpec, protocol: str) -> EngineConfig:
    """Raises ControlError, as the config loader would tell it."""
    if not NAME.fullmatch(name):
        raise ControlError(
            "that is no name for an engine", hint="letters, digits, _ . - only, at most 63, a letter or digit first"
        )
    try:
        parse_address(spec.address)
        if protocol != "mysql" and spec.server_tls_sslmode in MYSQL_NAMES:
            raise ValueError(f"{spec.server_tls_sslmode} is for mysql only")
        if protocol == "mysql" and spec.server_tls_sslmode == "allow":
            raise ValueError("allow is for postgresql only")
        engine = EngineConfig(**msgspec.structs.asdict(spec))
        engine_tls(engine, protocol)
    except ValueError as error:
        raise ControlError(
            f"the engine cannot be: {error}", hint="see [service.NAME.engine.NAME] in the config"
        ) from None
    except TlsProblem as problem:
        raise ControlError(f"server_tls_{problem.key}: {problem.text}", hint="see the page about TLS") from None
    return engine
