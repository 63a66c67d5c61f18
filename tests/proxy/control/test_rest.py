from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from proxy.control.rest import build_app
from proxy.control.service import ControlService
from proxy.errors import NotFound
from proxy.switch.plan import SwitchPlan
from proxy.switch.state import Phase
from tests.kit.waiting import until
from tests.proxy.control.scripted import LAG, PASSED, WARNED, ScriptedSupervisor, make_config

HERE = "http://127.0.0.1:7432"
SWITCH = "/v1/services/shop/switch"


@pytest.fixture
def supervisor() -> ScriptedSupervisor:
    return ScriptedSupervisor()


@pytest.fixture
def client(supervisor: ScriptedSupervisor) -> Iterator[TestClient[Litestar]]:
    with TestClient(build_app(ControlService(supervisor), supervisor.config), base_url=HERE) as one:
        yield one


@pytest.fixture
async def async_client(supervisor: ScriptedSupervisor) -> AsyncIterator[httpx.AsyncClient]:
    """In the supervisor's own loop, for what happens while a request waits."""
    transport = httpx.ASGITransport(build_app(ControlService(supervisor), supervisor.config))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as one:
        yield one


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found


# --- looking ------------------------------------------------------------------------------------------------------


def test_status_adds_up_what_the_workers_count(client: TestClient[Litestar]) -> None:
    answer = client.get("/v1/status").json()
    [shop] = answer["services"]
    assert answer["is_ready"]
    assert (shop["sessions"], shop["held"], shop["requests_total"]) == (10, 2, 2_000)
    assert shop["view"]["active"] == "blue"
    assert [worker["index"] for worker in answer["workers"]] == [0, 1]


def test_engines_are_listed_with_their_service_even_if_one_is_down(client: TestClient[Litestar]) -> None:
    rows = client.get("/v1/engines?service=shop").json()
    assert [(row["service"], row["engine"]["name"]) for row in rows] == [
        ("shop", one) for one in ("blue", "green", "red")
    ]
    assert rows[2]["engine"]["state"]["why"] == "connection refused"


def test_sessions_are_listed(client: TestClient[Litestar]) -> None:
    assert [row["portability"] for row in client.get("/v1/sessions").json()] == ["A", "A", "D"]


@pytest.mark.parametrize("path", ["/v1/sessions?service=no", "/v1/engines?service=no", "/v1/services/no/ready/green"])
def test_an_unknown_service_is_named_with_those_there_are(client: TestClient[Litestar], path: str) -> None:
    found = problem(client.get(path), 404)
    assert "'no'" in found["detail"]
    assert found["remedy"] == "services are: shop"


def test_an_unknown_engine_is_named_with_those_there_are(client: TestClient[Litestar]) -> None:
    assert problem(client.get("/v1/services/shop/ready/gren"), 404)["remedy"] == "its engines are: blue, green, red"


def test_the_config_is_shown_without_its_secrets(client: TestClient[Litestar]) -> None:
    answer = client.get("/v1/config")
    assert "opensesame" not in answer.text
    assert answer.json()["service"]["shop"]["admin"]["password"]["value"] == "***"


def test_health_and_readiness_are_two_things(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    assert client.get("/readyz").status_code == 200
    supervisor.is_listening = False
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


# --- switching ----------------------------------------------------------------------------------------------------


def test_a_switch_is_accepted_once_its_checks_have_passed(client: TestClient[Litestar]) -> None:
    answer = client.post(SWITCH, json={"target_engine": "green", "reason": "upgrade"})
    assert answer.status_code == 202
    record = answer.json()
    assert answer.headers["location"] == f"/v1/switches/{record['id']}"
    detail = client.get(f"/v1/switches/{record['id']}").json()
    assert (detail["phase"], detail["target"]) == ("completed", "green")
    assert detail["report"]["figures"]["cutover_ms"] == 12.5
    assert detail["plan"]["reason"] == "upgrade"
    assert detail["plan"]["requested_by"].startswith("local user at ")


async def test_the_answer_waits_for_the_checks_and_for_nothing_more(
    async_client: httpx.AsyncClient, supervisor: ScriptedSupervisor
) -> None:
    supervisor.runs_by_itself = False
    listening = len(supervisor.subscribers)
    asked = asyncio.ensure_future(async_client.post(SWITCH, json={"target_engine": "green"}))
    await until(lambda: bool(supervisor.records), "the switch was asked for")
    [switch_id] = supervisor.records
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asked.done(), asked.result().text
    supervisor.run(switch_id, until=Phase.PREPARING)
    answer = await asked
    assert (answer.status_code, answer.json()["phase"]) == (202, "preparing")
    running = await async_client.get(f"/v1/switches/{switch_id}")
    assert running.json()["report"] is None
    assert (await async_client.get("/v1/status")).json()["services"][0]["view"]["running"]["id"] == switch_id
    problem(await async_client.get(f"/v1/switches/{switch_id}/report"), 404)
    assert len(supervisor.subscribers) == listening, "the switch's own listener has gone"


def test_a_refused_switch_names_the_failed_check_and_the_remedy(
    client: TestClient[Litestar], supervisor: ScriptedSupervisor
) -> None:
    supervisor.checks = [PASSED, LAG]
    found = problem(client.post(SWITCH, json={"target_engine": "green"}), 409)
    assert found["detail"] == "check lag failed: 9 GB behind"
    assert found["remedy"] == "wait for green"
    assert [one["name"] for one in found["checks"] if one["verdict"] == "fail"] == ["lag"]
    assert supervisor.switch(found["switch"]).phase is Phase.ABORTED


def test_force_is_passed_on(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    supervisor.checks = [LAG]
    assert client.post(SWITCH, json={"target_engine": "green", "force": True}).status_code == 202


def test_a_dry_run_changes_nothing(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    supervisor.checks = [PASSED, WARNED]
    answer = client.post(SWITCH, json={"target_engine": "green", "dry_run": True})
    assert answer.status_code == 200
    assert answer.json()["is_ready"]
    supervisor.checks = [LAG]
    assert not client.post(SWITCH, json={"target_engine": "green", "dry_run": True}).json()["is_ready"]
    forced = client.post(SWITCH, json={"target_engine": "green", "dry_run": True, "force": True})
    assert forced.json()["is_ready"]
    assert not supervisor.records


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"target_engine": "blue"}, "'blue' is the active one already"),
        ({"target_engine": "mauve"}, "no engine 'mauve'"),
        ({"target_engine": "green", "batch_size": 5}, "batch_size is for strategy 'rolling'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    client: TestClient[Litestar], body: dict[str, Any], why: str, dry_run: bool
) -> None:
    found = problem(client.post(SWITCH, json=body | {"dry_run": dry_run}), 409)
    assert why in found["detail"]
    assert found["remedy"]


def test_one_switch_of_a_service_at_a_time(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    supervisor.records["x"] = _running(supervisor)
    found = problem(client.post(SWITCH, json={"target_engine": "green"}), 409)
    assert "is being switched" in found["detail"]


def _running(supervisor: ScriptedSupervisor) -> Any:
    other = ScriptedSupervisor()
    other.runs_by_itself = False
    record = asyncio.run(other.start_switch(SwitchPlan(service="shop", target="green")))
    record.id = "x"
    return record


def test_a_running_switch_can_be_cancelled_and_an_ended_one_cannot(
    client: TestClient[Litestar], supervisor: ScriptedSupervisor
) -> None:
    supervisor.records["x"] = _running(supervisor)
    answer = client.post("/v1/switches/x/cancel")
    assert (answer.status_code, answer.json()["phase"]) == (202, "aborted")
    assert supervisor.cancelled_by.startswith("local user at ")
    problem(client.post("/v1/switches/x/cancel"), 409)
    problem(client.post("/v1/switches/nope/cancel"), 404)


def test_history_is_newest_first_and_bounded(client: TestClient[Litestar]) -> None:
    ids = [client.post(SWITCH, json={"target_engine": one}).json()["id"] for one in ("green", "blue", "green")]
    assert [one["id"] for one in client.get("/v1/switches").json()] == ids[::-1]
    assert [one["id"] for one in client.get("/v1/switches?limit=1").json()] == ids[-1:]
    problem(client.get("/v1/switches?limit=0"), 400)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "target_engine"),
        ({"target_engin": "green"}, "target_engin"),
        ({"target_engine": "green", "drain_timeout_seconds": 3_601}, "<= 3600"),
        ({"target_engine": "green", "drain_timeout_seconds": -1}, ">= 0"),
        ({"target_engine": "green", "strategy": "gracefull"}, "gracefull"),
        ({"target_engine": ""}, "target_engine"),
        ([], "object"),
    ],
)
def test_a_request_that_does_not_fit_says_which_field(client: TestClient[Litestar], body: Any, why: str) -> None:
    assert why in problem(client.post(SWITCH, json=body), 400)["detail"]


def test_garbage_is_refused(client: TestClient[Litestar]) -> None:
    problem(client.post(SWITCH, content=b"\x00{", headers={"content-type": "application/json"}), 400)


def test_a_body_that_is_too_long_is_refused(client: TestClient[Litestar]) -> None:
    body = b'{"target_engine":"' + b"x" * 64 * 1024 + b'"}'
    problem(client.post(SWITCH, content=body, headers={"content-type": "application/json"}), 413)


def test_an_unknown_path_and_a_wrong_method_point_to_the_docs(client: TestClient[Litestar]) -> None:
    assert problem(client.get("/v1/nothing"), 404)["remedy"] == "see /docs for what there is"
    problem(client.get(SWITCH), 405)


def test_a_bug_of_ours_is_told_without_its_text(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    client.raise_server_exceptions = False  # type: ignore[attr-defined]
    supervisor.breaks = True
    found = problem(client.get("/v1/status"), 500)
    assert "opensesame" not in str(found)


# --- access -------------------------------------------------------------------------------------------------------

GUARDED = [
    "/v1/status",
    "/v1/engines",
    "/v1/sessions",
    "/v1/switches",
    "/v1/switches/x",
    "/v1/config",
    "/metrics",
    "/docs",
]


def test_a_name_that_was_rebound_to_this_machine_is_refused(client: TestClient[Litestar]) -> None:
    for host in ("evil.example", "evil.example:7432", "127.0.0.1.evil.example", "", "[", "10.0.0.1:7432"):
        for path in GUARDED:
            problem(client.get(path, headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["127.0.0.1:7432", "localhost:9999", "[::1]:7432", "LOCALHOST"])
def test_this_machine_may_be_called_by_its_names(client: TestClient[Litestar], host: str) -> None:
    assert client.get("/v1/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8000", "http://localhost:7432"])
def test_a_page_of_another_site_is_refused(client: TestClient[Litestar], origin: str) -> None:
    problem(client.post(SWITCH, json={"target_engine": "green"}, headers={"origin": origin}), 403)


def test_a_page_of_our_own_is_let_in(client: TestClient[Litestar]) -> None:
    assert client.post(SWITCH, json={"target_engine": "green"}, headers={"origin": HERE}).status_code == 202


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_can_send_is_refused(client: TestClient[Litestar], kind: str) -> None:
    body = b'{"target_engine":"green"}'
    problem(client.post(SWITCH, content=body, headers={"content-type": kind}), 415)


@pytest.fixture
def guarded() -> Iterator[TestClient[Litestar]]:
    supervisor = ScriptedSupervisor(make_config(token="s3cret"))
    with TestClient(build_app(ControlService(supervisor), supervisor.config), base_url="http://turnout.example") as one:
        yield one


def test_without_the_right_token_nothing_is_told(guarded: TestClient[Litestar]) -> None:
    for header in (None, "Bearer", "Bearer wrong", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer é"):
        headers = [(b"authorization", header.encode())] if header is not None else []
        for path in GUARDED:
            answer = guarded.get(path, headers=headers)
            problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_token_the_name_of_the_host_does_not_matter(guarded: TestClient[Litestar]) -> None:
    headers = {"authorization": "bearer s3cret", "origin": "http://other.example"}
    assert guarded.get("/v1/status", headers=headers).status_code == 200
    answer = guarded.post(SWITCH, json={"target_engine": "green"}, headers=headers)
    assert answer.json()["plan"]["requested_by"].startswith("token holder at ")


def test_probes_need_no_token(guarded: TestClient[Litestar]) -> None:
    assert guarded.get("/healthz").status_code == guarded.get("/readyz").status_code == 200


def test_no_answer_may_be_kept_framed_or_load_anything(client: TestClient[Litestar]) -> None:
    for path in ("/docs", "/v1/status", "/v1/nothing"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")


# --- metrics and docs ---------------------------------------------------------------------------------------------


def test_metrics_are_added_up_over_the_workers_and_have_units(client: TestClient[Litestar]) -> None:
    client.post(SWITCH, json={"target_engine": "green"})
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'turnout_sessions{service="shop"} 10.0',
        'turnout_requests_total{service="shop"} 2000.0',
        'turnout_received_bytes_total{service="shop"} 20000.0',
        'turnout_request_duration_seconds_bucket{engine="blue",le="2e-06",service="shop"} 1800.0',
        'turnout_request_duration_seconds_bucket{engine="blue",le="+Inf",service="shop"} 2000.0',
        'turnout_request_duration_seconds_sum{engine="blue",service="shop"} 4.0',
        'turnout_transaction_duration_seconds_sum{engine="blue",service="shop"} 8.0',
        'turnout_pool_wait_duration_seconds_sum{engine="blue",service="shop"} 1.0',
        'turnout_pool_backends{database="shop",engine="blue",service="shop",state="idle",user="app"} 8.0',
        'turnout_sessions_pinned{pin="advisory lock",service="shop"} 2.0',
        'turnout_sessions_graded{grade="D",service="shop"} 4.0',
        'turnout_sessions_graded{grade="C",service="shop"} 0.0',
        'turnout_prepared_statements{service="shop"} 14.0',
        'turnout_errors_total{class="42",service="shop"} 4.0',
        'turnout_engine_faults_total{engine="blue",service="shop"} 2.0',
        'turnout_worker_loop_lag_seconds_count{worker="1"} 1000.0',
        'turnout_engine_active{engine="green",service="shop"} 1.0',
        'turnout_engine_up{engine="red",service="shop"} 0.0',
        'turnout_engine_replication_lag_seconds{engine="green",service="shop"} 0.0015',
        'turnout_worker_cpu_seconds_total{worker="1"} 1.5',
        'turnout_switches_total{outcome="completed",service="shop",strategy="graceful"} 1.0',
        'turnout_switch_hold_seconds_count{service="shop"} 40.0',
        'turnout_switch_cutover_seconds_sum{service="shop"} 0.0125',
        'turnout_last_switch_cutover_seconds{service="shop"} 0.0125',
        'turnout_last_switch_hold_seconds{service="shop"} 0.08',
    ):
        assert line in lines


def test_metrics_speak_openmetrics_when_asked(client: TestClient[Litestar]) -> None:
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_every_path_is_described(client: TestClient[Litestar]) -> None:
    schema = client.get("/docs/openapi.json").json()
    for path in (
        "/v1/services/{service}/switch", "/v1/services/{service}/ready/{target}", "/v1/status", "/v1/engines",
        "/v1/sessions", "/v1/switches", "/v1/switches/{switch_id}", "/v1/switches/{switch_id}/report",
        "/v1/switches/{switch_id}/cancel", "/v1/services/{service}/failover",
        "/v1/services/{service}/failover/start", "/v1/config", "/healthz", "/readyz", "/metrics",
    ):  # fmt: skip
        for operation in schema["paths"][path].values():
            assert operation["description"]
    page = client.get("/docs").text
    assert "target_engine" in page
    assert "<script" not in page
    assert "//" not in page.replace("http://www.w3.org", "").partition("<style>")[0], "nothing is loaded from elsewhere"


def test_the_door_itself_refuses_what_is_not_there() -> None:
    supervisor = ScriptedSupervisor()
    with pytest.raises(NotFound):
        supervisor.switch("x")


# --- policies -----------------------------------------------------------------------------------------------------

SLOW = {
    "service": "shop",
    "trigger": "performance_degradation",
    "target_engine": "green",
    "response_time_threshold_ms": 250,
}


def test_a_policy_is_set_shown_and_forgotten(client: TestClient[Litestar]) -> None:
    assert client.put("/v1/policies/slow", json=SLOW).json()["policy"]["priority"] == 100
    assert client.put("/v1/policies/slow", json={**SLOW, "priority": 7}).json()["policy"]["priority"] == 7
    [listed] = client.get("/v1/policies?service=shop").json()
    assert listed == client.get("/v1/policies/slow").json()
    assert client.get("/v1/policy-history").json() == []
    assert client.delete("/v1/policies/slow").json()["name"] == "slow"
    problem(client.get("/v1/policies/slow"), 404)


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"target_engine": "nobody"}, 409),
        ({"service": "nowhere"}, 404),
        ({"response_time_threshold_ms": 0}, 409),
        ({"priority": 256}, 400),
        ({"priority": "high"}, 400),
        ({"colour": "red"}, 400),
    ],
)
def test_a_policy_that_cannot_be_is_refused(client: TestClient[Litestar], keys: dict[str, Any], status: int) -> None:
    problem(client.put("/v1/policies/slow", json={**SLOW, **keys}), status)
    assert client.get("/v1/policies").json() == []


def test_what_changes_a_policy_is_in_the_audit_log(client: TestClient[Litestar]) -> None:
    client.put("/v1/policies/slow", json=SLOW)
    client.post("/v1/policies/slow/disable")
    client.post("/v1/policies/slow/run")
    client.delete("/v1/policies/slow")
    entries = client.get("/v1/audit").json()
    assert [(one["action"], one["outcome"]) for one in entries] == [
        ("remove_policy", "done"), ("run_policy", "refused"), ("disable_policy", "done"), ("set_policy", "done"),
    ]  # fmt: skip


def test_a_data_check_needs_an_engine_there_is(client: TestClient[Litestar]) -> None:
    """And one there is to look at."""
    assert client.get("/v1/datachecks").json() == []
    problem(client.get("/v1/datachecks/20260101T000000-abcdef"), 404)
    found = problem(client.post("/v1/services/shop/datacheck", json={"target_engine": "mauve"}), 404)
    assert "no engine 'mauve'" in found["detail"]
    problem(client.post("/v1/services/shop/datacheck", json={"target_engine": "green", "chunk_rows": 1}), 400)
    problem(client.post("/v1/datachecks/20260101T000000-abcdef/resume"), 404)
