"""PgBouncer's admin console: the door's verbs in the words of PgBouncer 1.24, and some of Turnout's own.

A face like the others: it takes a question apart, calls the door and renders the answer. Workers hand the questions on, and
pass the answers to their clients as they are (`proxy.dataplane.console`), so that a busy console costs the data plane no
more than a copy. What is refused is refused in PgBouncer's words, because scripts read them; the SQLSTATE is PostgreSQL's
for that kind of thing, where PgBouncer has 08P01 for everything.

`PAUSE` and `WAIT_CLOSE` answer when it is done, as PgBouncer's do. A client that leaves meanwhile leaves the pause behind; one
that asks to cancel (Ctrl-C in psql) undoes it.

Left out on purpose: SUSPEND and SHOW FDS, which hand sockets to a new PgBouncer process (Turnout's workers outlive their
supervisor instead); SHUTDOWN WAIT_FOR_…, which have no bound in time; SET, because what is in force would not be what the
config file says. Each is refused with a text that says what to do instead.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from protocols.postgres.console import SPEAKS_AS, done, notice, refusal, table
from proxy import VERSION, ipc
from proxy.control import console_tables as tables
from proxy.control.console_tables import Sight
from proxy.control.roles import Caller, Role, require
from proxy.control.service import ControlService
from proxy.control.standstill import NoSuchDatabase
from proxy.errors import ConfigError, Conflict, NotAllowed, NotFound, ProxyError
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import ENDED, Phase
from proxy.tasks import again, cancel_and_wait, spawn

_log = structlog.get_logger("turnout.console")

STATS_PERIOD_S: Final = 60.0
"""PgBouncer's `stats_period`: what the averages are taken over."""

LOOK_S: Final = 0.05
"""Between two looks whether a switch has ended."""

_ROLES: Final = {role.word: role for role in Role}

_SPACE: Final = r"[ \t\n\r]"
_WORD: Final = r'"(?:[^"]|"")*"|[0-9A-Za-z_]+'
_COMMAND: Final = re.compile(rf"{_SPACE}*({_WORD})(?:{_SPACE}+({_WORD}))?{_SPACE}*(?:;{_SPACE}*)?")
_SET: Final = re.compile(
    rf"{_SPACE}*set{_SPACE}+({_WORD}){_SPACE}*(?:=|{_SPACE}to{_SPACE}){_SPACE}*({_WORD}|'(?:[^']|'')*')"
    rf"{_SPACE}*(?:;{_SPACE}*)?",
    re.IGNORECASE,
)
"""PgBouncer's own grammar."""

_OWN_WORD: Final = re.compile(rf"""{_SPACE}*("(?:[^"]|"")*"|'(?:[^']|'')*'|[^ \t\n\r;"']+)""")
_OWN: Final = re.compile(rf"{_SPACE}*(switch|cancel)(?={_SPACE}|;|$)", re.IGNORECASE)
_OWN_END: Final = re.compile(rf"{_SPACE}*(?:;{_SPACE}*)?$")

COMMAND_LENGTH_MAX: Final = 15
ARGUMENT_LENGTH_MAX: Final = 63
"""PgBouncer's buffers."""

# Some drivers ask for these at once, and PgBouncer has answers ready.
_PRETENDED: Final = {
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "datestyle": "ISO",
    "timezone": "GMT",
}

HELP: Final = """
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSHOW PREPARED_STATEMENTS|ENGINES|SESSIONS|SWITCHES
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tWAIT_CLOSE [<db>]
\tSWITCH TARGET <engine> [SERVICE <name>] [STRATEGY <name>] [DRAIN_TIMEOUT <s>] [FORCE] [DRY_RUN] [NOWAIT]
\tCANCEL [<switch>]
\tSHUTDOWN"""


class Refused(ProxyError):
    """The console refuses a question by itself."""

    def __init__(self, text: str, sqlstate: str, *, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.sqlstate = sqlstate


class _NoCommandError(Exception):
    """What was asked is none of the console's commands."""


class _Question:
    """One that has no answer yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.work: asyncio.Task[bytes] | None = None
        self.is_cancelled = False
        """Its client asks to cancel it, and waits."""


class AdminConsole:
    """See the module. `tell` brings an answer to a worker."""

    def __init__(self, door: ControlService, tell: Callable[[int, ipc.Order], None]) -> None:
        self._door = door
        self._tell = tell
        self._open: dict[tuple[int, int], _Question] = {}
        """By worker and session; each asks one thing at a time."""
        self._periods = tables.Periods(time.monotonic())
        self._turning = spawn(again(self._turn, STATS_PERIOD_S), name="console averages", stays=True)
        self._shows: dict[str, Callable[[Caller], Awaitable[bytes]]] = {
            "active_sockets": self._show_active_sockets,
            "clients": self._show_clients,
            "config": self._show_config,
            "databases": self._show_databases,
            "dns_hosts": self._show_dns_hosts,
            "dns_zones": self._show_dns_zones,
            "engines": self._show_engines,
            "fds": self._show_fds,
            "help": self._show_help,
            "lists": self._show_lists,
            "mem": self._show_mem,
            "peer_pools": self._show_peer_pools,
            "peers": self._show_peers,
            "pools": self._show_pools,
            "prepared_statements": self._show_prepared_statements,
            "servers": self._show_servers,
            "sessions": self._show_sessions,
            "sockets": self._show_sockets,
            "state": self._show_state,
            "stats": self._show_stats,
            "stats_averages": self._show_stats_averages,
            "stats_totals": self._show_stats_totals,
            "switches": self._show_switches,
            "totals": self._show_totals,
            "users": self._show_users,
            "version": self._show_version,
        }
        self._commands: dict[str, Callable[[Caller, str, _Question], Awaitable[bytes]]] = {
            "disable": self._disable,
            "enable": self._enable,
            "kill": self._kill,
            "kill_client": self._kill_client,
            "pause": self._pause,
            "reconnect": self._reconnect,
            "reload": self._reload,
            "resume": self._resume,
            "select": self._show,
            "show": self._show,
            "shutdown": self._shut_down,
            "suspend": self._suspend,
            "wait_close": self._wait_close,
        }

    async def close(self) -> None:
        """Answer nobody any more."""
        works = [question.work for question in self._open.values()]
        await cancel_and_wait(self._turning, *works)

    # --- questions ------------------------------------------------------------------------------------------------

    def asked(self, worker: int, asked: ipc.ConsoleAsked) -> None:
        """A client has asked something."""
        question = _Question(asked.question)
        self._open[worker, asked.session] = question
        # In this very step: that it is to be stopped may be the next thing that the worker says.
        question.work = spawn(self.answer(asked, question), name=f"console {asked.session} works")
        spawn(self._see_to(worker, asked, question, question.work), name=f"console {asked.session}")

    def stopped(self, worker: int, stopped: ipc.ConsoleStopped) -> None:
        """It has left, or asks to cancel."""
        question = self._open.get((worker, stopped.session))
        if question is not None and question.number == stopped.question and question.work is not None:
            question.is_cancelled = not stopped.has_left
            question.work.cancel()

    def worker_lost(self, worker: int) -> None:
        """Its clients have left with it. The one in its place counts sessions and questions from the beginning: an answer to
        somebody who is gone would be taken for somebody else's."""
        for index, session in [key for key in self._open if key[0] == worker]:
            work = self._open.pop((index, session)).work
            if work is not None:
                work.cancel()

    async def _see_to(
        self, worker: int, asked: ipc.ConsoleAsked, question: _Question, work: asyncio.Task[bytes]
    ) -> None:
        await asyncio.wait([work])
        if self._open.get((worker, asked.session)) is not question:
            return
        del self._open[worker, asked.session]
        if work.cancelled():
            data = refusal("canceling statement due to user request", "57014")
        else:
            data = work.result()
        self._tell(worker, ipc.ConsoleAnswer(session=asked.session, question=asked.question, data=data))

    async def answer(self, asked: ipc.ConsoleAsked, question: _Question) -> bytes:
        """What its client gets."""
        try:
            return await self._do(self._caller(asked), asked.text, question)
        except _NoCommandError:
            return refusal(f"invalid command '{asked.text}', use SHOW HELP;", "42601")
        except NotAllowed as error:
            return refusal(
                "admin access needed", "42501", hint=f"{error.text}: {error.hint}" if error.hint else error.text
            )
        except ProxyError as error:
            return refusal(error.text, _sqlstate(error), hint=error.hint)
        except Exception as error:  # noqa: BLE001  told to the client and logged with its traceback
            _log.error("the console failed", exc_info=error)
            return refusal("internal error of Turnout; its log says more", "XX000")

    def _caller(self, asked: ipc.ConsoleAsked) -> Caller:
        """The role is asked for at each question: a reload may have taken it away."""
        word = self._door.supervisor.config.console.role_of(asked.user)
        if word is None:
            raise Refused("not allowed", "28000", hint="this user is in none of the lists of [console] any more")
        return Caller(name=f"{asked.user} at {asked.client}", role=_ROLES[word], subject=f"console {asked.user}")

    async def _do(self, who: Caller, text: str, question: _Question) -> bytes:
        if _OWN.match(text):
            return await self._do_own(who, text)
        if (found := _COMMAND.fullmatch(text)) is not None:
            command, argument = (_unquoted(part or "") for part in found.groups())
            if len(command) > COMMAND_LENGTH_MAX or len(argument) > ARGUMENT_LENGTH_MAX:
                raise Refused("bad arguments", "42601")
            verb = self._commands.get(command.lower())
            if verb is None:
                raise _NoCommandError
            return await verb(who, argument, question)
        if (found := _SET.fullmatch(text)) is not None:
            return self._set(who, _unquoted(found[1]))
        raise _NoCommandError

    # --- PgBouncer's commands -------------------------------------------------------------------------------------

    async def _pause(self, who: Caller, database: str, question: _Question) -> bytes:
        places = self._door.pause(who, database)
        try:
            await self._door.released(who, places)
        except asyncio.CancelledError:
            if question.is_cancelled:
                self._door.resume(who, database)
            raise
        return done("PAUSE")

    async def _resume(self, who: Caller, database: str, _question: _Question) -> bytes:
        self._door.resume(who, database)
        return done("RESUME")

    async def _reconnect(self, who: Caller, database: str, _question: _Question) -> bytes:
        self._door.reconnect(who, database)
        return done("RECONNECT")

    async def _wait_close(self, who: Caller, database: str, _question: _Question) -> bytes:
        await self._door.wait_close(who, database)
        return done("WAIT_CLOSE")

    async def _kill(self, who: Caller, database: str, _question: _Question) -> bytes:
        self._door.kill(who, database)
        return done("KILL")

    async def _kill_client(self, who: Caller, number: str, _question: _Question) -> bytes:
        is_number = number.isascii() and number.isdigit()
        try:
            await self._door.end_session(who, int(number) if is_number else -1, "KILL_CLIENT at the console")
        except NotFound:
            if not is_number:
                raise Refused("invalid client pointer supplied", "22P02", hint="see `id` in SHOW CLIENTS") from None
            raise Refused("client not found", "42704", hint="SHOW CLIENTS lists them") from None
        return done("KILL_CLIENT")

    async def _disable(self, who: Caller, database: str, _question: _Question) -> bytes:
        self._door.disable(who, database, is_off=True)
        return done("DISABLE")

    async def _enable(self, who: Caller, database: str, _question: _Question) -> bytes:
        self._door.disable(who, database, is_off=False)
        return done("ENABLE")

    async def _reload(self, who: Caller, argument: str, _question: _Question) -> bytes:
        if argument:
            raise _NoCommandError
        try:
            reloaded = self._door.reload(who)
        except ConfigError as error:
            raise Refused(f"RELOAD failed: {error.text}", "F0000", hint=error.hint) from None
        said = b""
        if reloaded.kept:
            said += notice("not as the file says: " + "; ".join(reloaded.kept))
        if reloaded.needs_restart:
            said += notice("not in force before a restart: " + "; ".join(reloaded.needs_restart))
        return said + done("RELOAD")

    async def _shut_down(self, who: Caller, how: str, _question: _Question) -> bytes:
        self._needs_admin(who, "shut_down", how)
        if how.lower() in ("wait_for_clients", "wait_for_servers"):
            raise _unsupported(
                f"SHUTDOWN {how.upper()}",
                "SHUTDOWN gives sessions ten seconds to reach a boundary; to wait longer, PAUSE before it, which waits",
            )
        if how:
            raise _NoCommandError
        self._door.shut_down(who)
        return done("SHUTDOWN")

    async def _suspend(self, who: Caller, argument: str, _question: _Question) -> bytes:
        if argument:
            raise _NoCommandError
        self._needs_admin(who, "suspend", "")
        raise _unsupported(
            "SUSPEND",
            "It is for handing sockets to a new process. Turnout is updated without it: see the page about operation.",
        )

    def _needs_admin(self, who: Caller, action: str, target: str) -> None:
        """Of what the door has no verb for: who tries it without being an admin is remembered all the same."""
        try:
            require(who, Role.ADMIN, f"{action} at the console")
        except NotAllowed as error:
            self._door.refused(who, action, target, error.text)
            raise

    def _set(self, who: Caller, key: str) -> bytes:
        if key.lower() in _PRETENDED:
            return notice("SET ignored") + done("SET")
        self._needs_admin(who, "set", key)
        raise Refused(
            "SET failed", "0A000", hint="Change the config file, and RELOAD: SHOW CONFIG says what that applies."
        )

    # --- Turnout's own --------------------------------------------------------------------------------------------

    async def _do_own(self, who: Caller, text: str) -> bytes:
        words, at = [], 0
        while (found := _OWN_WORD.match(text, at)) is not None:
            words.append(_unquoted(found[1]))
            at = found.end()
        if _OWN_END.fullmatch(text, at) is None:
            raise _NoCommandError
        if words[0].lower() == "cancel" and len(words) <= 2:
            return await self._cancel(who, words[1] if len(words) == 2 else "")
        if words[0].lower() == "switch" and len(words) >= 3 and words[1].lower() == "target":
            return await self._switch(who, words[2], words[3:])
        raise _NoCommandError

    async def _switch(self, who: Caller, target: str, options: list[str]) -> bytes:
        wanted: dict[str, str] = {}
        left = list(options)
        while left:
            name = left.pop(0).lower()
            if name in ("force", "dry_run", "nowait"):
                wanted[name] = "yes"
            elif name in ("service", "strategy", "drain_timeout") and left:
                wanted[name] = left.pop(0)
            else:
                raise _NoCommandError
        try:
            drain_s = float(wanted["drain_timeout"]) if "drain_timeout" in wanted else None
        except ValueError:
            raise Refused(f"DRAIN_TIMEOUT {wanted['drain_timeout']} is no number of seconds", "22P02") from None
        plan = SwitchPlan(
            service=wanted.get("service") or self._service_with(who, target),
            target=target,
            strategy=wanted.get("strategy", "graceful").lower(),
            drain_timeout_s=drain_s,
            force="force" in wanted,
            dry_run="dry_run" in wanted,
            reason="asked for at the console",
        )
        if plan.dry_run:
            report = await self._door.rehearse(who, plan)
            return table(tables.CHECKS, tables.check_rows(report.checks), "SWITCH")
        record = await self._door.switch(who, plan)
        while "nowait" not in wanted and record.phase not in ENDED and not record.is_waiting:
            await asyncio.sleep(LOOK_S)
            record = self._door.switch_record(who, record.id)
        if record.phase in ENDED and record.phase is not Phase.COMPLETED:
            why = f"switch {record.id} {record.phase.value}: {record.error or 'no reason given'}"
            raise Refused(why, "55000", hint=record.remedy)
        return table(tables.SWITCHES, tables.switch_rows([record]), "SWITCH")

    def _service_with(self, who: Caller, engine: str) -> str:
        """The service that has an engine of that name."""
        found = [row.service for row in self._door.engines(who) if row.engine.name == engine]
        if len(found) == 1:
            return found[0]
        if found:
            raise Refused(f"engine {engine} is of several services", "42P08", hint=f"SERVICE {' or '.join(found)}")
        raise Refused(f"there is no engine {engine}", "42704", hint="SHOW ENGINES lists them")

    async def _cancel(self, who: Caller, switch: str) -> bytes:
        if not switch:
            running: list[SwitchRecord] = [one.running for one in self._door.services(who) if one.running is not None]
            if len(running) != 1:
                text = "no switch is under way" if not running else "several switches are under way"
                raise Refused(text, "55000", hint="CANCEL <switch>; SHOW SWITCHES lists them")
            switch = running[0].id
        record = await self._door.cancel(who, switch)
        return table(tables.SWITCHES, tables.switch_rows([record]), "CANCEL")

    # --- SHOW -----------------------------------------------------------------------------------------------------

    async def _show(self, who: Caller, what: str, _question: _Question) -> bytes:
        pretended = _PRETENDED.get(what.lower())
        if pretended is not None:
            return table([(what.lower(), "s")], [(pretended,)])
        show = self._shows.get(what.lower())
        if show is None:
            raise _NoCommandError
        return await show(who)

    async def _sight(
        self,
        who: Caller,
        *,
        sessions: bool = False,
        sockets: bool = False,
        backends: bool = False,
        figures: bool = False,
    ) -> Sight:
        supervisor = self._door.supervisor
        found: list[ipc.Session] = []
        if sockets:
            found = await self._door.connections(who)
        elif sessions:
            found = await self._door.sessions(who)
        return Sight(
            config=supervisor.config,
            services={view.name: view for view in self._door.services(who) if view.protocol == "postgresql"},
            standstills=supervisor.standstills,
            sessions=sorted(found, key=lambda one: (one.worker, one.id)),
            backends=await self._door.backends(who) if backends else (),
            workers=await self._door.figures(who) if figures else (),
        )

    async def _show_clients(self, who: Caller) -> bytes:
        return table(tables.CLIENTS, tables.client_rows(await self._sight(who, sockets=True), time.time()))

    async def _show_servers(self, who: Caller) -> bytes:
        return table(tables.SERVERS, tables.server_rows(await self._sight(who, backends=True), time.time()))

    async def _show_sockets(self, who: Caller) -> bytes:
        sight = await self._sight(who, sockets=True, backends=True)
        return table(tables.SOCKETS, tables.socket_rows(sight, time.time()))

    async def _show_active_sockets(self, who: Caller) -> bytes:
        sight = await self._sight(who, sockets=True)
        return table(tables.SOCKETS, tables.socket_rows(sight, time.time(), is_active=True))

    async def _show_prepared_statements(self, who: Caller) -> bytes:
        return table(tables.PREPARED_STATEMENTS, tables.prepared_rows(await self._sight(who, sessions=True)))

    async def _show_pools(self, who: Caller) -> bytes:
        return table(tables.POOLS, tables.pool_rows(await self._sight(who, sessions=True, figures=True)))

    async def _show_databases(self, who: Caller) -> bytes:
        return table(tables.DATABASES, tables.database_rows(await self._sight(who, sessions=True, figures=True)))

    async def _show_users(self, who: Caller) -> bytes:
        return table(tables.USERS, tables.user_rows(await self._sight(who, sessions=True, figures=True)))

    async def _show_lists(self, who: Caller) -> bytes:
        return table(tables.LISTS, tables.list_rows(await self._sight(who, sessions=True, figures=True)))

    async def _show_mem(self, who: Caller) -> bytes:
        return table(tables.MEM, tables.mem_rows(await self._sight(who, figures=True)))

    async def _show_state(self, who: Caller) -> bytes:
        return table(tables.STATE, tables.state_rows(await self._sight(who)))

    async def _show_config(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return table(tables.CONFIG, tables.config_rows(self._door.supervisor.config))

    async def _show_version(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return table(tables.VERSION, [(f"PgBouncer {SPEAKS_AS} (Turnout {VERSION})",)])

    async def _show_help(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return notice("Console usage", detail=HELP) + done("SHOW")

    async def _show_fds(self, who: Caller) -> bytes:
        self._needs_admin(who, "show_fds", "")
        raise _unsupported("SHOW FDS", "It is for handing sockets to a new process; SHOW SOCKETS lists them.")

    async def _show_peers(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return table(tables.PEERS, [])

    async def _show_peer_pools(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return table(tables.PEER_POOLS, [])

    async def _show_dns_hosts(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return table(tables.DNS_HOSTS, [])

    async def _show_dns_zones(self, who: Caller) -> bytes:
        require(who, Role.VIEWER)
        return table(tables.DNS_ZONES, [])

    async def _show_engines(self, who: Caller) -> bytes:
        return table(tables.ENGINES, tables.engine_rows(self._door.services(who)))

    async def _show_sessions(self, who: Caller) -> bytes:
        return table(tables.SESSIONS, tables.session_rows(await self._door.sessions(who)))

    async def _show_switches(self, who: Caller) -> bytes:
        return table(tables.SWITCHES, tables.switch_rows(self._door.switches(who)))

    # --- counts ---------------------------------------------------------------------------------------------------

    async def _counts(self, who: Caller) -> tuple[dict[str, tables.Counts], dict[str, tables.Counts]]:
        counts = tables.counts_of(await self._sight(who, figures=True))
        return counts, self._periods.averages(time.monotonic(), counts)

    async def _show_stats(self, who: Caller) -> bytes:
        return table(tables.STATS, tables.stats_rows(*await self._counts(who)))

    async def _show_stats_totals(self, who: Caller) -> bytes:
        return table(tables.STATS_TOTALS, tables.sums_rows((await self._counts(who))[0]))

    async def _show_stats_averages(self, who: Caller) -> bytes:
        return table(tables.STATS_AVERAGES, tables.sums_rows((await self._counts(who))[1]))

    async def _show_totals(self, who: Caller) -> bytes:
        return table(tables.TOTALS, tables.totals_rows(*await self._counts(who)))

    async def _turn(self) -> None:
        """A period of the averages is over."""
        if self._door.supervisor.config.console.is_on:
            own = Caller(name="console", role=Role.VIEWER)
            self._periods.turn(time.monotonic(), tables.counts_of(await self._sight(own, figures=True)))


def _unquoted(word: str) -> str:
    if word[:1] in ('"', "'") and len(word) >= 2:
        return word[1:-1].replace(word[0] * 2, word[0])
    return word


def _unsupported(what: str, hint: str) -> Refused:
    return Refused(f"{what} is not supported by Turnout", "0A000", hint=hint)


def _sqlstate(error: ProxyError) -> str:
    match error:
        case NotFound():
            return "3D000" if isinstance(error, NoSuchDatabase) else "42704"
        case Conflict():
            return "55000"
        case _:
            return error.sqlstate
