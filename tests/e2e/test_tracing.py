"""Traces, as a real collector would get them: OTLP over HTTP, decoded by OpenTelemetry's own messages. And `turnout top` before
the same Turnouts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pymysql
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from textual.widgets import DataTable, Static

from proxy.cli.top import Top, take
from proxy.control.client import ControlClient
from proxy.control.tracing import trace_id_of
from proxy.embedded import MariaDBPair, PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.waiting import until

pytestmark = [pytest.mark.slow]


class Collector:
    """Takes spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.service_names: set[str] = set()
        self.authorizations: set[str] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for line in head[1:] if line for name, value in [line.split(": ", 1)]}
                body = await reader.readexactly(int(headers["content-length"]))
                assert head[0] == "POST /v1/traces HTTP/1.1"
                self.authorizations.add(headers.get("authorization", ""))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.service_names.add(attributes(resource.resource)["service.name"])
                    self.spans += [span for scope in resource.scope_spans for span in scope.spans]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def attributes(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    one = Collector()
    await one.start()
    yield one
    one.close()


def _setup(folder: Path, collector: Collector, **more: Any) -> Setup:
    (folder / "otlp.txt").write_text("authorization=Bearer%20not-for-everybody\n")
    telemetry = {
        "endpoint": f"http://127.0.0.1:{collector.port}/v1/traces",
        "headers": {"file": "otlp.txt"},
        "service_name": "the-proxy",
    }
    return Setup(
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        top={"telemetry": telemetry},
        service={"replication": "none", "trace_ratio": 1.0, "server_lifetime_s": 0.0},
        **more,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(
    postgres_pair: PostgresPair, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    """Between two addresses of one PostgreSQL server."""
    folder = tmp_path_factory.mktemp("traced")
    engines = {"one": postgres_pair.primary.address, "two": f"localhost:{postgres_pair.primary.port}"}
    one = Turnout(_setup(folder, collector, protocol="postgresql", engines=engines, admin_user=SUPERUSER), folder)
    await one.start()
    yield one
    await one.stop()


TRACE = "5bd66ef5095369c7b0d1f8f4bd33716a"
PARENT = "c532cb4098ac3dd2"


def comment(flags: str = "01", trace: str = TRACE) -> str:
    """As sqlcommenter writes it."""
    return f"/*framework='django',traceparent='00-{trace}-{PARENT}-{flags}'*/"


@pytest.mark.postgresql
@pytest.mark.asyncio(loop_scope="module")
async def test_a_postgresql_query_goes_on_with_its_callers_trace_and_tells_no_value(
    turnout: Turnout, collector: Collector
) -> None:
    client = await asyncpg.connect(
        host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app", statement_cache_size=0
    )
    for flags in ("00", "01"):
        await client.execute(f"select 'hush', 42 from pg_class where relname = 'hush' {comment(flags)}")
    await client.fetch(f"select $1::text {comment(trace=TRACE[::-1])}", "hush")
    with pytest.raises(asyncpg.UndefinedTableError):
        await client.execute(f"update nowhere set a = 'hush' {comment()}")
    # No comment, but a value that looks like one.
    await client.execute("select 1")
    await until(lambda: len(collector.named("UPDATE app")) == 1, "the last span")
    # What is prepared is a request of its own.
    query, *prepared = collector.named("SELECT app")
    assert (query.trace_id.hex(), query.parent_span_id.hex()) == (TRACE, PARENT)
    assert query.kind == Span.SPAN_KIND_SERVER
    assert 0 < query.end_time_unix_nano - query.start_time_unix_nano < 5e9
    found = attributes(query)
    assert found["db.query.text"] == "select ?, … from pg_class where relname = ?"
    assert (found["db.system.name"], found["db.namespace"], found["db.operation.name"]) == (
        "postgresql",
        "app",
        "SELECT",
    )
    assert (found["turnout.service"], found["turnout.engine"]) == ("app", "one")
    assert f"{found['server.address']}:{found['server.port']}" == turnout.setup.engines["one"]
    assert {one.trace_id.hex() for one in prepared} == {TRACE[::-1]}
    assert {attributes(one)["db.query.text"] for one in prepared} == {"select ?::text"}
    [failed] = collector.named("UPDATE app")
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert collector.service_names == {"the-proxy"}
    assert collector.authorizations == {"Bearer not-for-everybody"}
    assert not any(b"hush" in span.SerializeToString() for span in collector.spans)
    assert "not-for-everybody" not in str(await turnout.get("/v1/config"))
    await client.close()


@pytest.mark.postgresql
@pytest.mark.asyncio(loop_scope="module")
async def test_a_switch_is_a_trace_with_its_phases(turnout: Turnout, collector: Collector) -> None:
    ended = await turnout.switch("two")
    assert ended["phase"] == "completed"
    await until(lambda: bool(collector.named("switch app")), "the switch's span")
    [span] = collector.named("switch app")
    assert int.from_bytes(span.trace_id) == trace_id_of(ended["id"])
    found = attributes(span)
    assert (found["turnout.switch.target"], found["turnout.switch.outcome"]) == ("two", "completed")
    assert found["turnout.switch.cutover_ms"] == ended["figures"]["cutover_ms"]
    assert span.status.code == Status.STATUS_CODE_UNSET
    phases = [one for one in collector.spans if one.parent_span_id == span.span_id]
    assert [one.name for one in phases] == [name for name in ended["stamps"] if name != "completed"]
    assert phases[0].start_time_unix_nano == span.start_time_unix_nano
    assert all(a.end_time_unix_nano == b.start_time_unix_nano for a, b in itertools.pairwise(phases))
    assert phases[-1].end_time_unix_nano == span.end_time_unix_nano


@pytest.mark.postgresql
@pytest.mark.asyncio(loop_scope="module")
async def test_top_shows_engines_pools_and_the_last_switch_and_obeys_its_keys(turnout: Turnout) -> None:
    control = ControlClient(turnout.control_url)
    app = Top(lambda: take(control), refresh_s=0.1)
    async with app.run_test(size=(80, 24)) as pilot:

        def text(name: str) -> str:
            return str(app.query_one(f"#{name}", Static).render())

        await until(lambda: app.query_one("#engines", DataTable).row_count == 2, "both engines are shown")
        assert "ready" in text("head")
        assert "one > two, completed" in text("switch")
        assert text("sessions").startswith("app: ")
        engines = app.query_one("#engines", DataTable)
        assert [str(cell) for cell in engines.get_row_at(1)][:3] == ["app", "two", "active"]
        await pilot.press("s", "s")
        assert str(engines.ordered_columns[2].label) == "state*"
        assert str(engines.get_row_at(0)[2]) == "active", "sorted by the state"
        await pilot.press("p")
        assert "PAUSED" in text("head")
        await pilot.press("down")
        assert engines.cursor_row == 1
        await pilot.press("q")


@pytest.mark.mariadb
@pytest.mark.asyncio(loop_scope="module")
async def test_a_mysql_query_goes_on_with_its_callers_trace(
    mariadb_pair: MariaDBPair, collector: Collector, tmp_path: Path
) -> None:
    setup = _setup(
        tmp_path,
        collector,
        protocol="mysql",
        engines={"only": mariadb_pair.primary.address},
        admin_user="turnout",
        auth_method="mysql_native_password",
    )
    turnout = Turnout(setup, tmp_path)
    await turnout.start()

    def talk() -> None:
        with (
            pymysql.connect(
                host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app"
            ) as client,
            client.cursor() as cursor,
        ):
            cursor.execute(f"select 'hush', \"hush\", `a` from (select 42 a) x {comment(trace='a' * 32)}")
            cursor.execute("select 'plain'")

    try:
        await asyncio.to_thread(talk)
        await until(lambda: any(span.trace_id.hex() == "a" * 32 for span in collector.spans), "the query's span")
    finally:
        await turnout.stop()
    [span] = [span for span in collector.spans if span.trace_id.hex() == "a" * 32]
    found = attributes(span)
    assert (found["db.system.name"], found["db.query.text"]) == ("mysql", "select ?, …, `a` from (select ? a) x")
