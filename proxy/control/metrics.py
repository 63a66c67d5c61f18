"""What Prometheus scrapes: `/metrics`. Names have the prefix `turnout_` and end in their unit.

Each scrape asks the workers once, adds up what they tell (`sums`) and builds its families from that; nothing is counted here
but what the supervisor tells of: ends of switches and decisions of policies. Only this module speaks prometheus_client; what is
below the control port does not know of it.
"""

from __future__ import annotations

import platform
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

from protocols.wire import Grade
from proxy import VERSION, ipc, latency
from proxy.control.alerts.keeper import Alerts
from proxy.control.alerts.model import State
from proxy.control.beneath import Supervisor
from proxy.control.sums import Sums
from proxy.errors import NotFound
from proxy.switch.failover_run import FAILOVER
from proxy.switch.plan import STRATEGIES, SwitchRecord
from proxy.switch.state import ENDED, Phase
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


class _Lengths:
    """A histogram that is filled here: of switches there are few."""

    def __init__(self) -> None:
        self.counts = [0] * latency.OCTAVES
        self.sum_s = 0.0

    def note(self, us: float, count: int = 1) -> None:
        """`count` more of that length, in microseconds."""
        self.counts[min(int(us).bit_length(), latency.OCTAVES - 1)] += count
        self.sum_s += us * count / 1e6


class _Told:
    """What has been told since the supervisor started."""

    def __init__(self) -> None:
        self.switches: dict[tuple[str, str, str], int] = {}
        """By service, strategy and outcome."""
        self.last: dict[str, dict[str, float]] = {}
        """Figures of the last completed switch of a service, in seconds."""
        self.phases: dict[str, dict[str, _Lengths]] = {"hold": {}, "drain": {}, "cutover": {}}
        """Waits of requests, and phases of completed switches, by service."""
        self.decisions: dict[tuple[str, str, str], int] = {}
        """By service, policy and code."""


class Metrics:
    """One for the life of a supervisor; it subscribes to its events."""

    def __init__(self, supervisor: Supervisor, alerts: Alerts | None = None) -> None:
        self._supervisor = supervisor
        self._alerts = alerts
        self._told = _Told()
        self._sums = Sums()
        supervisor.subscribe(self._on_event)

    def _on_event(self, event: Event) -> None:
        if event.kind == "switch.ended":
            self._on_end(self._supervisor.switch(str(event.data["id"])))
        elif event.kind == "policy.decided":
            key = (event.service, str(event.data["policy"]), str(event.data["code"]))
            self._told.decisions[key] = self._told.decisions.get(key, 0) + 1

    def _on_end(self, record: SwitchRecord) -> None:
        told, service = self._told, record.service
        key = (service, record.strategy, record.phase.value)
        told.switches[key] = told.switches.get(key, 0) + 1
        for wait in self._waits(record.id):
            # Of a bucket only its bounds are known: its middle stands for what is in it.
            told.phases["hold"].setdefault(service, _Lengths()).note(0.75 * wait["under_us"], wait["count"])
        if record.phase is not Phase.COMPLETED:
            return
        told.last[service] = {
            name: value / 1e3 for name in SWITCH_FIGURES if (value := _number(record.figures.get(name))) is not None
        }
        for name in ("drain", "cutover"):
            value = _number(record.figures.get(f"{name}_ms"))
            if value is not None:
                told.phases[name].setdefault(service, _Lengths()).note(1e3 * value)

    def _waits(self, switch_id: str) -> list[dict[str, int]]:
        """How long requests waited because of a switch, as its report has it; nothing where there is none."""
        try:
            waits: list[dict[str, int]] = self._supervisor.report(switch_id)["waits"]["histogram"]
        except NotFound:
            return []
        return waits

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, in the form that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        answers = await self._supervisor.figures()
        workers = self._supervisor.workers()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            _Scrape(
                views=self._supervisor.services(),
                workers=workers,
                answers=answers,
                sums=self._sums.take(answers, {worker.index: worker.pid for worker in workers}),
                started_at=self._supervisor.started_at,
                spans=self._supervisor.span_counts(),
                told=self._told,
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
        views: list[ServiceView],
        workers: list[WorkerView],
        answers: list[ipc.WorkerFigures],
        sums: list[ipc.ServiceFigures],
        started_at: float,
        spans: dict[str, int],
        told: _Told,
    ) -> None:
        self._views = views
        self._workers = workers
        self._answers = answers
        self._sums = sums
        self._started_at = started_at
        self._spans = spans
        self._told = told

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        build = {"version": VERSION, "python": platform.python_version(), "worker_protocol": str(ipc.PROTOCOL_VERSION)}
        yield InfoMetricFamily("turnout_build", "This Turnout.", value=build)
        yield GaugeMetricFamily(
            "turnout_start_time_seconds", "When the supervisor started, seconds since 1970.", value=self._started_at
        )
        yield from self._of_workers()
        yield from self._of_clients()
        yield from self._of_requests()
        yield from self._of_pools()
        yield from self._of_engines()
        yield from self._of_switches()
        yield from self._of_policies()
        spans = CounterMetricFamily(
            "turnout_trace_spans", "Spans, by what became of them: sent, failed, dropped.", labels=["outcome"]
        )
        for outcome, count in self._spans.items():
            spans.add_metric([outcome], count)
        yield spans

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
        lag = HistogramMetricFamily(
            "turnout_worker_loop_lag_seconds", "How much later than due a timer came, ten a second.", labels=["worker"]
        )
        for answered in self._answers:
            label = [str(answered.worker)]
            cpu.add_metric(label, answered.cpu_s)
            memory.add_metric(label, answered.rss_bytes)
            lag.add_metric(label, _buckets(latency.by_octave(answered.loop_lag)), answered.loop_lag_us_total / 1e6)
        yield from (connected, configured, restarts, cpu, memory, lag)

    def _of_clients(self) -> Iterator[Metric]:
        labels = ["service"]
        sessions = GaugeMetricFamily("turnout_sessions", "Client connections.", labels=labels)
        held = GaugeMetricFamily("turnout_sessions_held", "Client connections that a switch holds.", labels=labels)
        graded = GaugeMetricFamily(
            "turnout_sessions_graded",
            "Sessions by portability: A nothing to carry to D pinned.",
            labels=[*labels, "grade"],
        )
        pinned = GaugeMetricFamily(
            "turnout_sessions_pinned", "Sessions that cannot be carried, by reason.", labels=[*labels, "pin"]
        )
        prepared = GaugeMetricFamily(
            "turnout_prepared_statements", "Prepared statements that sessions have.", labels=labels
        )
        counters = {
            field: CounterMetricFamily(f"turnout_{name}", help_text, labels=labels)
            for field, name, help_text in (
                ("sessions_total", "sessions_accepted", "Clients that logged in."),
                ("requests_total", "requests", "Requests of clients that were answered."),
                ("transactions_total", "transactions", "Transactions that ended."),
                ("login_failures_total", "login_failures", "Clients whose login failed."),
                ("bytes_in_total", "received_bytes", "Bytes read from clients."),
                ("bytes_out_total", "sent_bytes", "Bytes written to clients."),
            )
        }
        errors = CounterMetricFamily(
            "turnout_errors", "Error messages to clients, by class of SQLSTATE.", labels=[*labels, "class"]
        )
        for found in self._sums:
            label = [found.service]
            sessions.add_metric(label, found.sessions)
            held.add_metric(label, found.held)
            prepared.add_metric(label, found.prepared_statements)
            for grade in Grade:
                graded.add_metric([*label, grade.value], found.grades.get(grade.value, 0))
            for pin, count in found.pinned.items():
                pinned.add_metric([*label, pin], count)
            for field, counter in counters.items():
                counter.add_metric(label, getattr(found, field))
            for name, count in sorted(found.errors_by_class.items()):
                errors.add_metric([*label, name], count)
        yield from (sessions, held, graded, pinned, prepared, *counters.values(), errors)

    def _of_requests(self) -> Iterator[Metric]:
        """By the engine that did the work."""
        labels = ["service", "engine"]
        requests = HistogramMetricFamily(
            "turnout_request_duration_seconds", "From a request's arrival to the end of its answer.", labels=labels
        )
        transactions = HistogramMetricFamily(
            "turnout_transaction_duration_seconds",
            "From the request that began a transaction to the end of the answer that ended it.",
            labels=labels,
        )
        waits = HistogramMetricFamily(
            "turnout_pool_wait_duration_seconds", "Waits for a backend, where none was given at once.", labels=labels
        )
        faults = CounterMetricFamily(
            "turnout_engine_faults", "Errors that are not the clients' own making.", labels=labels
        )
        for service in self._sums:
            for found in service.engines:
                label = [service.service, found.engine]
                for family, counts, us_total in (
                    (requests, found.latency, found.request_us_total),
                    (transactions, found.transaction_latency, found.transaction_us_total),
                    (waits, found.waits, found.wait_us_total),
                ):
                    family.add_metric(label, _buckets(latency.by_octave(counts)), us_total / 1e6)
                faults.add_metric(label, found.faults_total)
        yield from (requests, transactions, waits, faults)

    def _of_pools(self) -> Iterator[Metric]:
        labels = ["service", "engine", "database", "user"]
        backends = GaugeMetricFamily("turnout_pool_backends", "Connections to an engine.", labels=[*labels, "state"])
        waiting = GaugeMetricFamily("turnout_pool_waiting", "Clients that wait for a backend.", labels=labels)
        # One pool for each login an engine was opened with; those that differ only in parameters share a label.
        sums: dict[tuple[str, ...], list[int]] = {}
        for service in self._sums:
            for pool in service.pools:
                counts = sums.setdefault((service.service, pool.engine, pool.database, pool.user), [0, 0, 0])
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
        for service in self._views:
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
            for service in self._views:
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
        for service in self._views:
            epoch.add_metric([service.name], service.epoch)
            if service.running is not None:
                running.add_metric([service.name, service.running.phase.value], 1)
        ended = CounterMetricFamily(
            "turnout_switches",
            "Switches that ended since the supervisor started.",
            labels=["service", "strategy", "outcome"],
        )
        failovers = CounterMetricFamily(
            "turnout_failovers", "Those of them that were failovers.", labels=["service", "outcome"]
        )
        # From 0 on: of a series that begins with its first event, Prometheus' increase() sees no increase.
        known = {
            (service.name, strategy, phase.value): 0
            for service in self._views
            for strategy in (*STRATEGIES, FAILOVER)
            for phase in sorted(ENDED, key=lambda one: one.value)
        }
        for (name, strategy, outcome), count in (known | self._told.switches).items():
            ended.add_metric([name, strategy, outcome], count)
            if strategy == FAILOVER:
                failovers.add_metric([name, outcome], count)
        yield from (epoch, running, ended, failovers)
        for name, text in (
            ("hold", "Waits of requests because of a switch."),
            ("drain", "Of completed switches: the wait for open transactions."),
            ("cutover", "Of completed switches: Turnout's own part of the time without service."),
        ):
            histogram = HistogramMetricFamily(f"turnout_switch_{name}_seconds", text, labels=["service"])
            for service_name, lengths in self._told.phases[name].items():
                histogram.add_metric([service_name], _buckets(lengths.counts), lengths.sum_s)
            yield histogram
        for figure in SWITCH_FIGURES:
            gauge = GaugeMetricFamily(
                f"turnout_last_switch_{figure.removesuffix('_ms')}_seconds",
                f"The figure {figure} of the last completed switch since the supervisor started.",
                labels=["service"],
            )
            for name, figures in self._told.last.items():
                if figure in figures:
                    gauge.add_metric([name], figures[figure])
            yield gauge

    def _of_policies(self) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            "turnout_policy_decisions",
            "Changes of what was decided about a policy, by code, since the supervisor started.",
            labels=["service", "policy", "code"],
        )
        for key, count in self._told.decisions.items():
            decisions.add_metric(key, count)
        yield decisions


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
    """Cumulative buckets with upper bounds in seconds, of the buckets of `latency.by_octave`."""
    out: list[tuple[str, float]] = []
    total = 0
    for index, count in enumerate(counts):
        total += count
        bound = "+Inf" if index == len(counts) - 1 else str(2**index / 1e6)
        out.append((bound, total))
    return out
