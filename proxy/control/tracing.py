"""Traces by OpenTelemetry: a span for each switch with its phases below it, and spans of queries that continue their callers'
traces. They go out by OTLP over HTTP, from a thread, in batches.

A span of a switch is made when the switch has ended, from its record: nothing of a switch waits for a collector. A query's is
made of what a worker tells (`ipc.QuerySpan`); of its text only the fingerprint gets out (`proxy.fingerprint`). What a collector does
not take in time is dropped and counted: at most SPANS_KEPT spans are kept.

Only this module speaks OpenTelemetry, and it is imported only where the config names an endpoint: the SDK takes a third of a
second and some 15 MB.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections import deque
from typing import Any, Final
from urllib.parse import unquote

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy import VERSION, ipc
from proxy.config import Config, TelemetryConfig, parse_address
from proxy.control.beneath import Supervisor
from proxy.fingerprint import fingerprint
from proxy.switch.evidence import Figures
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import ENDED, Phase
from proxy.switch.views import Event
from proxy.tasks import again, spawn

_log = structlog.get_logger("turnout.tracing")

# The exporter logs every try that fails, with whatever the endpoint answered. We say once that it fails.
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # noqa: TID251  that library's own, to silence it

SPANS_KEPT: Final = 4_096
"""Spans that wait to be sent; the ones that come when there are so many are dropped."""

BATCH_SPANS: Final = 512
"""Most spans of one request."""

EVERY_S: Final = 1.0
"""How often spans are sent."""

_FIGURES: Final = tuple(name for name in Figures.__struct_fields__ if name.endswith("_ms"))


class _Ids(RandomIdGenerator):
    """Random ones, but for the trace of a switch: who has the switch's id finds its trace."""

    trace_id: int = 0
    """Of the next span without a parent; 0: random."""

    def generate_trace_id(self) -> int:
        return self.trace_id or super().generate_trace_id()


class _Keeper(SpanProcessor):
    """Keeps spans that have ended, up to a bound."""

    def __init__(self) -> None:
        self.spans: deque[ReadableSpan] = deque()
        self.dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        if len(self.spans) >= SPANS_KEPT:
            self.dropped += 1
        else:
            self.spans.append(span)


def trace_id_of(switch_id: str) -> int:
    """The id of the trace that has a switch's span: the first half of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(switch_id.encode()).digest()[:16])


class Tracing:
    """One for the life of a supervisor whose config names an endpoint."""

    def __init__(self, supervisor: Supervisor, config: Config, *, every_s: float = EVERY_S) -> None:
        self._supervisor = supervisor
        self.sent = 0
        """Spans that the endpoint took."""
        self.failed = 0
        """Spans that it did not take in time."""
        self._dropped_by_workers = 0
        self._keeper = _Keeper()
        self._ids = _Ids()
        resource = Resource.create(
            {
                SERVICE_NAME: config.telemetry.service_name,
                SERVICE_VERSION: VERSION,
                SERVICE_INSTANCE_ID: f"{config.control.listen}",
            }
        )
        provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(self._keeper)
        self._tracer = provider.get_tracer("turnout", VERSION)
        self._exporter = _exporter(config.telemetry)
        self._timeout_s = config.telemetry.timeout_s
        self._is_failing = False
        self._unsubscribe = supervisor.subscribe(self._on_event)
        self._sending = spawn(again(self._send, every_s), name="send spans", stays=True)

    @property
    def dropped(self) -> int:
        """Spans for which there was no room, here or in a worker."""
        return self._keeper.dropped + self._dropped_by_workers

    def counts(self) -> dict[str, int]:
        """See `Supervisor.span_counts`."""
        return {"sent": self.sent, "failed": self.failed, "dropped": self.dropped}

    # --- switches -------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if event.kind == "switch.ended":
            self._add_switch(self._supervisor.switch(str(event.data["id"])))

    def _add_switch(self, record: SwitchRecord) -> None:
        began_ns = int(record.began_at * 1e9)
        stamps = sorted(record.stamps.items(), key=lambda stamp: stamp[1])
        if not stamps:
            return
        attributes: dict[str, Any] = {
            "turnout.service": record.service,
            "turnout.switch.id": record.id,
            "turnout.switch.source": record.source,
            "turnout.switch.target": record.target,
            "turnout.switch.strategy": record.strategy,
            "turnout.switch.outcome": record.phase.value,
            "turnout.switch.epoch": record.epoch,
            "turnout.switch.requested_by": record.plan.requested_by,
        }
        for name in _FIGURES:
            value = record.figures.get(name)
            if isinstance(value, dict):
                attributes |= {f"turnout.switch.{name}.{part}": one for part, one in value.items()}
            elif value is not None:
                attributes[f"turnout.switch.{name}"] = value
        self._ids.trace_id = trace_id_of(record.id)
        span = self._tracer.start_span(
            f"switch {record.service}", attributes=attributes, start_time=began_ns, kind=SpanKind.INTERNAL
        )
        self._ids.trace_id = 0
        if record.phase is not Phase.COMPLETED:
            span.set_status(Status(StatusCode.ERROR, record.error))
        context = set_span_in_context(span)
        for (phase, at_us), (_next, until_us) in itertools.pairwise(stamps):
            child = self._tracer.start_span(phase, context=context, start_time=began_ns + at_us * 1000)
            child.end(began_ns + until_us * 1000)
        last, ended_us = stamps[-1]
        assert last in {phase.value for phase in ENDED}, "told of when it has ended"
        span.end(began_ns + ended_us * 1000)

    # --- queries --------------------------------------------------------------------------------------------------

    def hear(self, told: ipc.QuerySpans) -> None:
        """What a worker tells of requests that are part of traces."""
        self._dropped_by_workers += told.dropped
        # The workers' clock and ours are one.
        since_ns = time.time_ns() - time.monotonic_ns()
        for query in told.spans:
            self._add_query(query, since_ns)

    def _add_query(self, query: ipc.QuerySpan, since_ns: int) -> None:
        service = self._supervisor.config.service.get(query.service)
        if service is None:
            return
        text = query.text.decode("utf-8", "replace")
        shape = fingerprint(text, is_mysql=service.protocol == "mysql", is_whole=query.is_whole)
        operation = shape.kind.upper()
        attributes: dict[str, Any] = {
            "db.system.name": service.protocol,
            "db.namespace": query.database,
            "db.query.text": shape.text,
            "turnout.fingerprint": shape.digest,
            "turnout.service": query.service,
            "turnout.engine": query.engine,
            "turnout.session": query.session,
        }
        if operation:
            attributes["db.operation.name"] = operation
        if query.engine in service.engine:
            host, port = parse_address(service.engine[query.engine].address)
            attributes |= {"server.address": host, "server.port": port}
        context = TraceContextTextMapPropagator().extract({"traceparent": query.parent})
        span = self._tracer.start_span(
            f"{operation or 'query'} {query.database}".rstrip(),
            context=context,
            attributes=attributes,
            kind=SpanKind.SERVER,
            start_time=since_ns + query.began_ns,
        )
        if query.errors:
            span.set_status(Status(StatusCode.ERROR))
        span.end(since_ns + query.ended_ns)

    # --- sending --------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        """All that is there now."""
        kept = self._keeper.spans
        for _ in range(-(-len(kept) // BATCH_SPANS)):
            batch = [kept.popleft() for _ in range(min(BATCH_SPANS, len(kept)))]
            outcome = await asyncio.to_thread(self._exporter.export, batch)
            if outcome is SpanExportResult.SUCCESS:
                self.sent += len(batch)
            else:
                self.failed += len(batch)
            is_failing = outcome is not SpanExportResult.SUCCESS
            if is_failing != self._is_failing:
                self._is_failing = is_failing
                log = _log.warning if is_failing else _log.info
                log("spans are not taken" if is_failing else "spans are taken again")

    async def close(self) -> None:
        """Send what is left, and end; takes `timeout_s` at most."""
        self._unsubscribe()
        self._sending.cancel()
        await asyncio.wait([self._sending])
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send()
        except TimeoutError:
            self.failed += len(self._keeper.spans)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # theirs has no types


def _exporter(config: TelemetryConfig) -> OTLPSpanExporter:
    return OTLPSpanExporter(
        endpoint=config.endpoint,
        certificate_file=config.ca_file or None,
        headers=_headers(config.headers.value or "") if config.headers is not None else {},
        timeout=config.timeout_s,
    )


def _headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, percent-encoded, as OTEL_EXPORTER_OTLP_HEADERS has them."""
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip().lower(): unquote(value.strip()) for name, _equals, value in pairs}
