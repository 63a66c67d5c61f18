"""The one stream of figures: what is known of every engine, second by second, for a bounded time.

Time and errors are what Turnout sees on the wire, so they are the clients' truth; availability is the probes'; connections
are the server's own count; processor and memory come from where the config says (`proxy.engines.load`). What is not known
is None, and nobody guesses.

Pure: it is told the time and the counters, and asks nobody. Policies, `turnout engines`, `/metrics` and the control port
read from here, so that they cannot disagree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from proxy import ipc, latency

HISTORY_S: Final = 900
"""Seconds that are kept of each engine; the longest `window_duration`."""

SHOWN_S: Final = 10
"""Seconds over which `EngineFigures` are taken."""


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of an engine as they are shown, over the last `SHOWN_S` seconds. None: not known."""

    response_time_ms: float | None = None
    """Mean time from a request to the end of its answer, on the wire; None without a request."""
    cpu_usage_percent: float | None = None
    memory_usage_percent: float | None = None
    """Both 0 to 100, of what the config's `load` looks at; None: it names nothing, or that does not answer."""
    active_connections: int | None = None
    """As the server counts them, by whomever; None: it does not answer."""
    query_rate_per_second: float | None = None
    """Requests through Turnout that were answered; None: the workers have not been asked yet."""
    error_rate_percent: float | None = None
    """Share of these that ended with an error that is not the client's own (SQLSTATE classes 22, 23, 42 and their like);
    None without a request."""
    availability_percent: float | None = None
    """Share of the looks, over all seconds that are kept, at which the last probe had been answered; None: not probed."""
    last_updated: float
    """Seconds since 1970."""


class WireCounts(msgspec.Struct, frozen=True):
    """What one worker has counted of one engine since it began; or a difference of two such."""

    requests: int = 0
    request_us: int = 0
    """Time with a request in flight, summed, in microseconds."""
    server_errors: int = 0
    """Errors that are not the client's own."""
    latency: dict[int, int] = {}
    """Requests by length, in the buckets of `proxy.latency`; those with none are left out."""

    @staticmethod
    def of(figures: ipc.EngineFigures) -> WireCounts:
        """As a worker tells it."""
        return WireCounts(
            requests=figures.requests_total,
            request_us=figures.request_us_total,
            server_errors=figures.faults_total,
            latency={bucket: count for bucket, count in enumerate(figures.latency) if count},
        )

    def plus(self, other: WireCounts) -> WireCounts:
        return self._with(other, 1)

    def minus(self, other: WireCounts) -> WireCounts:
        return self._with(other, -1)

    def _with(self, other: WireCounts, sign: int) -> WireCounts:
        latency = dict(self.latency)
        for bucket, count in other.latency.items():
            latency[bucket] = latency.get(bucket, 0) + sign * count
            if not latency[bucket]:
                del latency[bucket]
        return WireCounts(
            self.requests + sign * other.requests,
            self.request_us + sign * other.request_us,
            self.server_errors + sign * other.server_errors,
            latency,
        )


_NOTHING: Final = WireCounts()

EngineKey = tuple[str, str]
"""Service and engine."""


class WireDifferences:
    """Turns the workers' counters into what was new since the last look.

    A worker that is seen for the first time may be older than this supervisor: what it counted before is left out. One that
    was replaced begins at zero, which shows as a counter that went down."""

    def __init__(self) -> None:
        self._before: dict[int, dict[EngineKey, WireCounts]] = {}

    def take(self, workers: Iterable[ipc.WorkerFigures]) -> dict[EngineKey, WireCounts]:
        """What is new, by engine, of all workers that answered. An engine that never served anything may be absent."""
        new: dict[EngineKey, WireCounts] = {}
        for worker in workers:
            counted = {
                (service.service, engine.engine): WireCounts.of(engine)
                for service in worker.services
                for engine in service.engines
            }
            before = self._before.get(worker.worker)
            self._before[worker.worker] = counted
            if before is None:
                continue
            was_replaced = any(counts.requests < before.get(key, _NOTHING).requests for key, counts in counted.items())
            for key, counts in counted.items():
                since = counts if was_replaced else counts.minus(before.get(key, _NOTHING))
                new[key] = new.get(key, _NOTHING).plus(since)
        return new


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One engine in one second."""

    at_ns: int
    wall: float
    wire: WireCounts | None = None
    """What was new on the wire; None: no worker has answered."""
    took_s: float = 1.0
    """The time this is about, in seconds."""
    is_available: bool | None = None
    """The last probe was answered; None: none has ended yet."""
    connections: int | None = None
    cpu_percent: float | None = None
    memory_percent: float | None = None


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of seconds of one engine, as one."""

    covered_s: float
    """How much of the stretch was watched."""
    requests: int
    response_time_ms: float | None
    error_rate_percent: float | None
    server_errors: int
    cpu_percent: float | None
    memory_percent: float | None
    connections: float | None
    """Means of the seconds in which they were known; None unless that was at least half of those watched."""


class Stream:
    """See the module. At most `HISTORY_S` seconds of each engine there is."""

    def __init__(self) -> None:
        self._rings: dict[EngineKey, deque[Second]] = {}
        self._shown: dict[EngineKey, tuple[Second, EngineFigures]] = {}
        """What was made of the newest second."""

    def add(self, key: EngineKey, second: Second) -> None:
        """The newest second of an engine."""
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = deque(maxlen=HISTORY_S)
        ring.append(second)

    def keep(self, keys: Iterable[EngineKey]) -> None:
        """Forget the engines that are not among these."""
        kept = set(keys)
        for key in [key for key in self._rings if key not in kept]:
            del self._rings[key]
            self._shown.pop(key, None)

    def window(self, key: EngineKey, now_ns: int, span_s: float) -> Window:
        """The last `span_s` seconds."""
        seconds = list(self._since(key, now_ns - int(span_s * 1e9)))
        wires = [second.wire for second in seconds if second.wire is not None]
        requests, server_errors = sum(one.requests for one in wires), sum(one.server_errors for one in wires)
        return Window(
            covered_s=sum(second.took_s for second in seconds),
            requests=requests,
            response_time_ms=sum(one.request_us for one in wires) / requests / 1e3 if requests else None,
            error_rate_percent=_percent(server_errors, requests),
            server_errors=server_errors,
            cpu_percent=_mean([second.cpu_percent for second in seconds]),
            memory_percent=_mean([second.memory_percent for second in seconds]),
            connections=_mean([second.connections for second in seconds]),
        )

    def slower_percent(self, key: EngineKey, now_ns: int, span_s: float, threshold_ms: float) -> float:
        """Share of the requests of the last `span_s` seconds that took longer than the threshold, in percent, to an eighth of
        it: those of its own bucket do not count. Takes milliseconds where a window does not: for when it matters."""
        total = slower = 0
        for second in self._since(key, now_ns - int(span_s * 1e9)):
            for bucket, count in (second.wire or _NOTHING).latency.items():
                total += count
                if latency.lower_us(bucket) > threshold_ms * 1e3:
                    slower += count
        return 100.0 * slower / total if total else 0.0

    def is_answering(self, key: EngineKey) -> bool:
        """It has not failed to answer the last probe; also of an engine that was not probed yet."""
        ring = self._rings.get(key)
        return not ring or ring[-1].is_available is not False

    def figures(self, key: EngineKey) -> EngineFigures | None:
        """As they are shown; None before the first second."""
        ring = self._rings.get(key)
        if not ring:
            return None
        last = ring[-1]
        shown = self._shown.get(key)
        if shown is not None and shown[0] is last:
            # Every request of the control port asks, and a second takes a third of a millisecond.
            return shown[1]
        window = self.window(key, last.at_ns, SHOWN_S)
        answers = [second.is_available for second in ring if second.is_available is not None]
        is_counted = any(second.wire is not None for second in self._since(key, last.at_ns - SHOWN_S * 10**9))
        figures = EngineFigures(
            response_time_ms=_rounded(window.response_time_ms),
            cpu_usage_percent=_rounded(last.cpu_percent),
            memory_usage_percent=_rounded(last.memory_percent),
            active_connections=last.connections,
            query_rate_per_second=_rounded(window.requests / window.covered_s) if is_counted else None,
            error_rate_percent=_rounded(window.error_rate_percent),
            availability_percent=_rounded(_percent(sum(answers), len(answers))),
            last_updated=last.wall,
        )
        self._shown[key] = (last, figures)
        return figures

    def _since(self, key: EngineKey, from_ns: int) -> Iterator[Second]:
        for second in self._rings.get(key, ()):
            if second.at_ns > from_ns:
                yield second


def _percent(part: int, whole: int) -> float | None:
    """Of nothing nobody knows a share. More errors than requests can be: one request may end with several."""
    return min(100.0, 100.0 * part / whole) if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and 2 * len(known) >= len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
