"""What Prometheus scrapes: `/metrics`. Names have the prefix `turnout_` and end in their unit.

Each scrape asks the workers once and builds its families from the answer; nothing is counted here but the ends of
switches. What workers count has the label `worker`: the counters of one that was replaced begin anew, and only in a
series of its own does Prometheus see that; `sum by (service)` adds them up. Only this module speaks prometheus_client; what is below the control port does not know of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from proxy import VERSION, ipc
from proxy.control.alerts.keeper import Alerts
from proxy.control.alerts.model import State
from proxy.control.service import Supervisor
from proxy.switch.state import Phase
from proxy.switch.views import Event, ServiceView, WorkerView

SWITCH_FIGURES: Final = ("hold_ms", "blackout_ms", "drain_ms", "catchup_ms", "promote_ms", "cutover_ms")
"""Figures of the last completed switch that are shown as gauges, in seconds. `hold_ms` is its maximum."""


_ENGINE_FIGURES: Final = (
    ("response_time_ms", "response_time_seconds", 1e-3, "Mean time of a request on the wire, over 10 s."),
    ("query_rate_per_second", "request_rate", 1.0, "Requests through Turnout in a second, over 10 s."),
    ("error_rate_percent", "error_ratio", 1e-2, "Requests that ended with an error of the server, over 10 s."),
    ("active_connections", "connections", 1.0, "Connections that the server counts."),
    ("availability_percent", "availability_ratio", 1e-2, "Looks at which the last probe had been answered."),
    ("cpu_usage_percent", "cpu_usage_ratio", 1e-2, "Processors in use, as the config's `load` tells."),
    ("memory_usage_percent", "memory_usage_ratio", 1e-2, "Memory in use, as the config's `load` tells."),
)
"""Figure, name, factor to the base unit, help."""


class Metrics:
    """One for the life of a supervisor; it subscribes to the ends of switches."""

    def __init__(self, supervisor: Supervisor, alerts: Alerts | None = None) -> None:
        self._supervisor = supervisor
        self._alerts = alerts
        self._ended: dict[tuple[str, str], int] = {}
        self._last: dict[str, dict[str, float]] = {}
        supervisor.subscribe(self._on_event)

    def _on_event(self, event: Event) -> None:
        if event.kind != "switch.ended":
            return
        record = self._supervisor.switch(str(event.data["id"]))
        key = (record.service, record.phase.value)
        self._ended[key] = self._ended.get(key, 0) + 1
        if record.phase is Phase.COMPLETED:
            self._last[record.service] = {
                name: value / 1e3 for name in SWITCH_FIGURES if (value := _number(record.figures.get(name))) is not None
            }

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, in the form that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            _Scrape(
                services=self._supervisor.services(),
                workers=self._supervisor.workers(),
                figures=await self._supervisor.figures(),
                started_at=self._supervisor.started_at,
                ended=self._ended,
                last=self._last,
            )
        )
        registry.register(_ScrapeOfAlerts(self._alerts))
        return encode(registry), content_type


def _number(figure: object) -> float | None:
    """A figure in milliseconds; of a distribution its maximum."""
    if isinstance(figure, dict):
        figure = figure.get("max")
    return float(figure) if isinstance(figure, int | float) else None


class _Scrape:
    """One scrape's answer, as prometheus_client wants to collect it."""

    def __init__(
        self,
        *,
        services: list[ServiceView],
        workers: list[WorkerView],
        figures: list[ipc.WorkerFigures],
        started_at: float,
        ended: dict[tuple[str, str], int],
        last: dict[str, dict[str, float]],
    ) -> None:
        self._services = services
        self._workers = workers
        self._figures = figures
        self._started_at = started_at
        self._ended = ended
        self._last = last

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("turnout_build", "This Turnout.", value={"version": VERSION})
        yield GaugeMetricFamily(
            "turnout_start_time_seconds", "When the supervisor started, seconds since 1970.", value=self._started_at
        )
        yield from self._of_workers()
        yield from self._of_clients()
        yield from self._of_pools()
        yield from self._of_engines()
        yield from self._of_switches()

    def _of_workers(self) -> Iterator[Metric]:
        connected = GaugeMetricFamily(
            "turnout_worker_connected", "1 if the worker process talks to the supervisor.", labels=["worker"]
        )
        configured = GaugeMetricFamily(
            "turnout_worker_configured", "1 if the worker has its config and listens.", labels=["worker"]
        )
        restarts = CounterMetricFamily(
            "turnout_worker_restarts", "How often a worker of this index had to be replaced.", labels=["worker"]
        )
        for worker in self._workers:
            label = [str(worker.index)]
            connected.add_metric(label, float(worker.is_connected))
            configured.add_metric(label, float(worker.is_configured))
            restarts.add_metric(label, worker.restarts)
        cpu = CounterMetricFamily("turnout_worker_cpu_seconds", "Processor time of the process.", labels=["worker"])
        memory = GaugeMetricFamily(
            "turnout_worker_resident_memory_bytes", "Resident memory of the process.", labels=["worker"]
        )
        for answered in self._figures:
            cpu.add_metric([str(answered.worker)], answered.cpu_s)
            memory.add_metric([str(answered.worker)], answered.rss_bytes)
        yield from (connected, configured, restarts, cpu, memory)

    def _of_services(self) -> Iterator[tuple[list[str], ipc.ServiceFigures]]:
        """What each worker counts of each service, with the labels service and worker."""
        for answered in self._figures:
            for figures in answered.services:
                yield [figures.service, str(answered.worker)], figures

    def _of_clients(self) -> Iterator[Metric]:
        labels = ["service", "worker"]
        sessions = GaugeMetricFamily("turnout_sessions", "Client connections.", labels=labels)
        held = GaugeMetricFamily("turnout_sessions_held", "Client connections that a switch holds.", labels=labels)
        pinned = GaugeMetricFamily(
            "turnout_sessions_pinned", "Sessions that cannot be carried, by reason.", labels=[*labels, "pin"]
        )
        counters = {
            field: CounterMetricFamily(f"turnout_{name}", help_text, labels=labels)
            for field, name, help_text in (
                ("sessions_total", "sessions_accepted", "Clients that logged in."),
                ("requests_total", "requests", "Requests of clients that were answered."),
                ("transactions_total", "transactions", "Transactions that ended."),
                ("errors_total", "errors", "Error messages that engines sent to clients."),
                ("login_failures_total", "login_failures", "Clients whose login failed."),
                ("bytes_in_total", "received_bytes", "Bytes read from clients."),
                ("bytes_out_total", "sent_bytes", "Bytes written to clients."),
            )
        }
        durations = HistogramMetricFamily(
            "turnout_request_duration_seconds", "From a request's arrival to the end of its answer.", labels=labels
        )
        for label, found in self._of_services():
            sessions.add_metric(label, found.sessions)
            held.add_metric(label, found.held)
            for pin, count in found.pinned.items():
                pinned.add_metric([*label, pin], count)
            for field, counter in counters.items():
                counter.add_metric(label, getattr(found, field))
            durations.add_metric(label, _buckets(found.latency_buckets), found.request_us_total / 1e6)
        yield from (sessions, held, pinned, *counters.values(), durations)

    def _of_pools(self) -> Iterator[Metric]:
        labels = ["service", "worker", "engine", "database", "user"]
        backends = GaugeMetricFamily("turnout_pool_backends", "Connections to an engine.", labels=[*labels, "state"])
        waiting = GaugeMetricFamily("turnout_pool_waiting", "Clients that wait for a backend.", labels=labels)
        # One pool for each login an engine was opened with; those that differ only in parameters share a label.
        sums: dict[tuple[str, ...], list[int]] = {}
        for label, found in self._of_services():
            for pool in found.pools:
                counts = sums.setdefault((*label, pool.engine, pool.database, pool.user), [0, 0, 0])
                for index, count in enumerate((pool.idle, pool.in_use, pool.waiting)):
                    counts[index] += count
        for key, (idle, in_use, waiters) in sums.items():
            backends.add_metric([*key, "idle"], idle)
            backends.add_metric([*key, "in_use"], in_use)
            waiting.add_metric(key, waiters)
        yield from (backends, waiting)

    def _of_engines(self) -> Iterator[Metric]:
        labels = ["service", "engine"]
        active = GaugeMetricFamily("turnout_engine_active", "1 if the engine serves its service.", labels=labels)
        up = GaugeMetricFamily("turnout_engine_up", "1 if the last probe was answered.", labels=labels)
        writable = GaugeMetricFamily("turnout_engine_writable", "1 if the engine takes writes.", labels=labels)
        lag_bytes = GaugeMetricFamily(
            "turnout_engine_replication_lag_bytes", "Changes a PostgreSQL standby has still to replay.", labels=labels
        )
        lag = GaugeMetricFamily(
            "turnout_engine_replication_lag_seconds", "Age of the newest change not applied yet.", labels=labels
        )
        response = GaugeMetricFamily(
            "turnout_engine_probe_duration_seconds", "Round trip of the last probe.", labels=labels
        )
        for service in self._services:
            for engine in service.engines:
                label = [service.name, engine.name]
                active.add_metric(label, float(engine.is_active))
                state = engine.state
                if state is None:
                    continue
                up.add_metric(label, float(state.is_reachable))
                if not state.is_reachable:
                    continue
                writable.add_metric(label, float(state.is_writable))
                response.add_metric(label, state.response_time_ms / 1e3)
                if state.lag_bytes is not None:
                    lag_bytes.add_metric(label, state.lag_bytes)
                if state.lag_ms is not None:
                    lag.add_metric(label, state.lag_ms / 1e3)
        yield from (active, up, writable, lag_bytes, lag, response)
        yield from self._of_figures()

    def _of_figures(self) -> Iterator[Metric]:
        """What is known of the engines; what is not has no sample."""
        for field, name, scale, text in _ENGINE_FIGURES:
            gauge = GaugeMetricFamily(f"turnout_engine_{name}", text, labels=["service", "engine"])
            for service in self._services:
                for engine in service.engines:
                    value = getattr(engine.figures, field) if engine.figures is not None else None
                    if value is not None:
                        gauge.add_metric([service.name, engine.name], value * scale)
            yield gauge

    def _of_switches(self) -> Iterator[Metric]:
        epoch = GaugeMetricFamily("turnout_service_epoch", "Raised by every cutover.", labels=["service"])
        running = GaugeMetricFamily(
            "turnout_switch_running", "1 while a switch runs, by its phase.", labels=["service", "phase"]
        )
        for service in self._services:
            epoch.add_metric([service.name], service.epoch)
            if service.running is not None:
                running.add_metric([service.name, service.running.phase.value], 1)
        ended = CounterMetricFamily(
            "turnout_switches", "Switches that ended since the supervisor started.", labels=["service", "outcome"]
        )
        for (name, outcome), count in self._ended.items():
            ended.add_metric([name, outcome], count)
        yield from (epoch, running, ended)
        for figure in SWITCH_FIGURES:
            gauge = GaugeMetricFamily(
                f"turnout_last_switch_{figure.removesuffix('_ms')}_seconds",
                f"The figure {figure} of the last completed switch since the supervisor started.",
                labels=["service"],
            )
            for name, figures in self._last.items():
                if figure in figures:
                    gauge.add_metric([name], figures[figure])
            yield gauge


class _ScrapeOfAlerts:
    """What alerts there are, and what becomes of the messages about them."""

    def __init__(self, alerts: Alerts | None) -> None:
        self._alerts = alerts

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        firing = GaugeMetricFamily("turnout_alerts", "Alerts, by state.", labels=["alert", "severity", "state"])
        waiting = GaugeMetricFamily(
            "turnout_alert_messages_waiting", "Messages that are still to be delivered.", labels=["receiver"]
        )
        messages = CounterMetricFamily(
            "turnout_alert_messages", "Messages since the supervisor started.", labels=["receiver", "outcome"]
        )
        if self._alerts is not None:
            counts = Counter(
                (one.name, one.severity, one.state.value)
                for one in self._alerts.views()
                if one.state in (State.PENDING, State.FIRING)
            )
            for labels, count in sorted(counts.items()):
                firing.add_metric(labels, count)
            for receiver in self._alerts.receivers():
                waiting.add_metric([receiver.name], receiver.waiting)
                for outcome in ("delivered", "failed", "dropped"):
                    messages.add_metric([receiver.name, outcome], getattr(receiver, outcome))
        yield from (firing, waiting, messages)


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative buckets with upper bounds in seconds: bucket i counts below 2**i µs, the last one all that is longer."""
    out: list[tuple[str, float]] = []
    total = 0
    for index, count in enumerate(counts):
        total += count
        bound = "+Inf" if index == len(counts) - 1 else str(2**index / 1e6)
        out.append((bound, total))
    return out or [("+Inf", 0)]
