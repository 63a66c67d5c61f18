"""What the workers tell of themselves, brought to where it belongs: switches, the guard, the console, traces, events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from protocols.postgres.console import refusal
from proxy import ipc
from proxy.switch.guard import Guard
from proxy.switch.orchestrator import Orchestrator
from proxy.switch.views import Event
from proxy.tasks import spawn
from proxy.workers import Workers

_log = structlog.get_logger("turnout.supervisor")

_NOT_YET: Final = refusal("Turnout is starting; try again in a moment", "57P03")


class Console(Protocol):
    """What is needed of `proxy.control.console.AdminConsole`."""

    def asked(self, worker: int, asked: ipc.ConsoleAsked) -> None: ...
    def stopped(self, worker: int, stopped: ipc.ConsoleStopped) -> None: ...
    def worker_lost(self, worker: int) -> None: ...


class SpanEar(Protocol):
    """Who makes traces of what workers tell; see `proxy.control.tracing`."""

    def hear(self, told: ipc.QuerySpans) -> None:
        """Requests that are part of traces."""

    def counts(self) -> dict[str, int]:
        """Spans by what became of them."""


class Hearing:
    """Fulfils `proxy.workers.Ears`."""

    def __init__(
        self,
        workers: Workers,
        switches: Orchestrator,
        guard: Guard,
        configuration: Callable[[], ipc.Configure],
        publish: Callable[[Event], None],
    ) -> None:
        self.configuration = configuration
        self.console: Console | None = None
        """Answers the clients of the console; set by whoever has the door."""
        self.tracing: SpanEar | None = None
        """Told of queries that are part of traces; None: there are no traces."""
        self._workers = workers
        self._switches = switches
        self._guard = guard
        self._publish = publish

    def worker_joined(self, worker: int, hello: ipc.Hello) -> None:
        self._switches.worker_joined(worker, hello.runs, hello.epochs)
        self._tell("worker.joined", {"worker": worker, "pid": hello.pid})

    def worker_lost(self, worker: int, why: str) -> None:
        self._switches.worker_lost(worker)
        if self.console is not None:
            self.console.worker_lost(worker)
        self._tell("worker.lost", {"worker": worker, "why": why})

    def worker_said(self, worker: int, fact: ipc.Fact) -> None:
        match fact:
            case ipc.CancelWanted():
                spawn(self._cancel(worker, fact), name=f"cancel request of worker {worker}")
            case ipc.KillWanted():
                spawn(self._kill(worker, fact), name=f"kill of worker {worker}")
            case ipc.IdsWanted():
                spawn(self._tell_ids(worker, fact), name=f"ids for worker {worker}")
            case ipc.ConsoleAsked():
                self._ask_console(worker, fact)
            case ipc.ConsoleStopped():
                if self.console is not None:
                    self.console.stopped(worker, fact)
            case ipc.QuerySpans():
                if self.tracing is not None:
                    self.tracing.hear(fact)
            case ipc.EngineLost():
                _log.warning("a worker lost an engine", worker=worker, engine=fact.engine, why=fact.why)
                self._guard.engine_lost(fact.service, fact.engine, fact.at_ns)
                self._tell("engine.lost", {"worker": worker, "engine": fact.engine, "why": fact.why}, fact.service)
                self._switches.engine_lost(fact.service, fact.engine, fact.why)
            case _:
                self._switches.worker_said(worker, fact)

    def _ask_console(self, worker: int, asked: ipc.ConsoleAsked) -> None:
        if self.console is not None:
            self.console.asked(worker, asked)
            return
        answer = ipc.ConsoleAnswer(session=asked.session, question=asked.question, data=_NOT_YET)
        self._workers.tell(worker, answer)

    async def _cancel(self, worker: int, wanted: ipc.CancelWanted) -> None:
        await self._workers.cancel(wanted.process_id, wanted.secret, but=worker)
        self._workers.tell(worker, ipc.CancelDone(request=wanted.request))

    async def _kill(self, worker: int, wanted: ipc.KillWanted) -> None:
        taken = await self._workers.kill(wanted, but=worker) or ipc.KillTaken(request=0, is_found=False)
        self._workers.tell(
            worker,
            ipc.KillDone(
                request=wanted.request,
                is_found=taken.is_found,
                code=taken.code,
                sqlstate=taken.sqlstate,
                text=taken.text,
            ),
        )

    async def _tell_ids(self, worker: int, wanted: ipc.IdsWanted) -> None:
        ids = await self._workers.connection_ids(wanted, but=worker)
        self._workers.tell(worker, ipc.IdsTold(request=wanted.request, ids=ids))

    def _tell(self, kind: str, data: dict[str, Any], service: str = "") -> None:
        self._publish(Event(kind=kind, at=time.time(), service=service, data=data))
