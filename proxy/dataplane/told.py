"""What a worker tells of itself: its sessions and backends, one by one, and its figures. Looks, and changes nothing."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator, Sequence

from proxy import ipc
from proxy.dataplane.backend import Backend
from proxy.dataplane.registry import Standing
from proxy.dataplane.relay import Link, Meter
from proxy.dataplane.runtime import Runtime
from proxy.dataplane.session import Session
from proxy.latency import Lengths, added


def session_row(worker: int, runtime: Runtime, session: Session, now_ns: int, *, with_sockets: bool) -> ipc.Session:
    """One client connection; to ask for its sockets costs two calls of the kernel more."""
    grade, pins = session.portability()
    backend = session.backend
    carried = session.ledger.carried() if session.ledger is not None else {}
    said = dict(session.startup.parameters) if session.startup is not None else {}
    local, tls = _socket_facts(session.link) if with_sockets else ("", "")
    return ipc.Session(
        id=session.id,
        worker=worker,
        service=runtime.name,
        protocol=runtime.wire.name,
        user=session.startup.user if session.startup else "",
        database=session.startup.database if session.startup else "",
        client=session.client,
        engine=backend.engine if backend is not None else "",
        backend_pid=backend.facts.process_id if backend is not None else 0,
        standing=session.standing.value,
        in_transaction=session.in_transaction,
        portability=grade.value,
        pins=pins,
        carried=carried,
        requests=session.tracker.requests if session.tracker is not None else 0,
        age_s=(now_ns - session.opened_ns) / 1e9,
        idle_s=(now_ns - session.relay.last_request_ns) / 1e9 if session.relay is not None else 0.0,
        waiting_s=_waiting_s(session, now_ns),
        replication=_replication(said.get("replication")),
        application=said.get("application_name", ""),
        statements=carried.get("prepared statements", 0),
        local=local,
        tls=tls,
    )


def backend_rows(runtimes: Sequence[Runtime]) -> Iterator[ipc.Backend]:
    """Every connection to an engine that is in a pool. Who walks may let others work in between: a backend is told once, with
    the state that it had in the beginning."""
    there = [
        (runtime, backend, state)
        for runtime in runtimes
        for pool in runtime.pools()
        for backend, state in pool.backends()
    ]
    owners = {
        session.backend: session for runtime in runtimes for session in runtime.registry if session.backend is not None
    }
    for runtime, backend, state in there:
        yield _backend_row(runtime, backend, state, owners.get(backend))


def _backend_row(runtime: Runtime, backend: Backend, state: str, owner: Session | None) -> ipc.Backend:
    now_ns = time.monotonic_ns()
    local, tls = _socket_facts(backend.link)
    since_ns = backend.idle_since_ns
    if owner is not None and owner.relay is not None:
        since_ns = owner.relay.last_request_ns
    return ipc.Backend(
        service=runtime.name,
        engine=backend.engine,
        address=backend.reach.address,
        database=backend.startup.database,
        user=backend.startup.user,
        state=state,
        session=owner.id if owner is not None else 0,
        process_id=backend.facts.process_id,
        age_s=(now_ns - backend.opened_ns) / 1e9,
        idle_s=(now_ns - since_ns) / 1e9,
        is_retired=backend.is_doubtful,
        local=local,
        tls=tls,
        application=dict(backend.startup.parameters).get("application_name", ""),
        statements=len(backend.notes.get("statements", ())),
    )


def worker_figures(request: int, worker: int, runtimes: Iterable[Runtime], lags: Lengths) -> ipc.WorkerFigures:
    """What this process counts; `lags` is how late its loop was."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", "rb", buffering=0) as statm:
        pages = int(statm.read().split()[1])
    return ipc.WorkerFigures(
        request=request,
        worker=worker,
        pid=os.getpid(),
        loop_lag=lags.counts,
        loop_lag_us_total=lags.us_total,
        cpu_s=usage.ru_utime + usage.ru_stime,
        rss_bytes=pages * resource.getpagesize(),
        services=[_service_figures(runtime) for runtime in runtimes],
    )


def _service_figures(runtime: Runtime) -> ipc.ServiceFigures:
    counted = runtime.census.look()
    served = {engine for engine, _ in runtime.meters}
    engines = [_engine_figures(runtime, name) for name in runtime.config.engine if name in served]
    meters = runtime.meters.values()
    return ipc.ServiceFigures(
        service=runtime.name,
        sessions=len(runtime.registry),
        sessions_total=runtime.registry.total,
        requests_total=sum(one.requests for one in meters),
        transactions_total=sum(one.transactions for one in meters),
        errors_total=sum(runtime.error_classes.values()),
        errors_by_class=dict(runtime.error_classes),
        login_failures_total=runtime.login_failures,
        bytes_in_total=sum(one.bytes_in for one in meters),
        bytes_out_total=sum(one.bytes_out for one in meters),
        request_us_total=sum(one.request_ns for one in meters) // 1000,
        engines=engines,
        held=runtime.registry.count(Standing.HELD),
        pools=[
            ipc.PoolFigures(
                service=runtime.name,
                engine=pool.name[0],
                database=pool.name[1],
                user=pool.name[2],
                idle=pool.idle,
                in_use=pool.in_use,
                waiting=pool.waiting,
                opening=pool.opening,
                checking=pool.checking,
                cancelling=pool.cancelling,
            )
            for pool in runtime.pools()
        ],
        pinned=counted.pinned,
        grades=counted.grades,
        prepared_statements=counted.prepared,
        databases=_database_figures(runtime),
    )


def _engine_figures(runtime: Runtime, engine: str) -> ipc.EngineFigures:
    meters, waits = runtime.meters_of(engine), runtime.waits.get(engine)
    return ipc.EngineFigures(
        engine=engine,
        requests_total=sum(one.spans for one in meters),
        errors_total=sum(one.errors for one in meters),
        faults_total=sum(one.faults for one in meters),
        request_us_total=sum(one.request_ns for one in meters) // 1000,
        latency=added(one.fine_buckets for one in meters),
        transactions_total=sum(one.transactions for one in meters),
        transaction_us_total=sum(one.transaction_ns for one in meters) // 1000,
        transaction_latency=added(one.transaction_buckets for one in meters),
        wait_us_total=waits.us_total if waits is not None else 0,
        waits=waits.counts if waits is not None else [],
    )


def _database_figures(runtime: Runtime) -> list[ipc.DatabaseFigures]:
    """Of those that somebody has or had a backend in."""
    meters: dict[str, list[Meter]] = {}
    for (_, database), meter in runtime.meters.items():
        meters.setdefault(database, []).append(meter)
    return [
        ipc.DatabaseFigures(
            database=database,
            requests_total=sum(one.requests for one in its_own),
            transactions_total=sum(one.transactions for one in its_own),
            bytes_in_total=sum(one.bytes_in for one in its_own),
            bytes_out_total=sum(one.bytes_out for one in its_own),
            request_us_total=sum(one.request_ns for one in its_own) // 1000,
            transaction_us_total=sum(one.transaction_ns for one in its_own) // 1000,
            assignments_total=sum(one.assignments for one in its_own),
            wait_us_total=sum(one.wait_ns for one in its_own) // 1000,
        )
        for database, its_own in meters.items()
    ]


def _waiting_s(session: Session, now_ns: int) -> float:
    """How long its login or its request has waited for a backend."""
    if session.standing is Standing.ARRIVING:
        return (now_ns - session.opened_ns) / 1e9
    if session.relay is None or not session.relay.waiting_since_ns:
        return 0.0
    return (now_ns - session.relay.waiting_since_ns) / 1e9


def _replication(asked: str | None) -> str:
    if asked is None:
        return "none"
    return "logical" if asked == "database" else "physical"


def _socket_facts(link: Link) -> tuple[str, str]:
    """Our own end of a connection, and its TLS."""
    tls = f"{link.ssl.version}/{link.ssl.cipher}" if link.ssl is not None else ""
    if not link.is_open:
        return "", tls
    with socket.socket(fileno=os.dup(link.fd)) as own:
        host, port = own.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", tls
