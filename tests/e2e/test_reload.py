"""The config file read again while Turnout serves: engines come and go with it, and nothing goes to one that is not there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import Door
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

NOTHING: dict[str, list[str]] = {"added": [], "removed": [], "applied": [], "kept": [], "needs_restart": []}


class Stage:
    """A Turnout whose file names one, two or more addresses of one server."""

    def __init__(self, turnout: Turnout, pair: PostgresPair) -> None:
        self.turnout = turnout
        self.one = {"one": pair.primary.address}
        self.both = {**self.one, "two": f"localhost:{pair.primary.port}"}

    def write(self, engines: dict[str, str], *, goes_to: str = "", **service: object) -> None:
        """Another config file. `goes_to`: a policy with the name `go` has this target."""
        setup = self.turnout.setup
        more = {**setup.service, **service}
        if goes_to:
            more["policy"] = {"go": {"trigger": "manual", "target_engine": goes_to}}
        replace(setup, engines=engines, service=more).write(self.turnout.folder)

    async def reload(self) -> dict[str, list[str]]:
        async with self.turnout.control() as client:
            answer = await client.post("/v1/config/reload")
            answer.raise_for_status()
            found: dict[str, list[str]] = answer.json()
            return found

    async def refused(self) -> str:
        """Why a reload is."""
        async with self.turnout.control() as client:
            answer = await client.post("/v1/config/reload")
            assert answer.status_code == 409, answer.text
            return str(answer.json()["detail"])

    async def engines(self) -> list[str]:
        return [row["engine"]["name"] for row in await self.turnout.get("/v1/engines?service=app")]

    async def until_reached(self, name: str) -> None:
        async def is_reached() -> bool:
            rows = await self.turnout.get("/v1/engines?service=app")
            [state] = [row["engine"]["state"] for row in rows if row["engine"]["name"] == name]
            return bool(state and state["is_reachable"])

        await until(is_reached, f"engine {name} is looked at")

    async def command(self, *arguments: str) -> str:
        """What a command of `turnout` says."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", *arguments,
            env={**os.environ, "TURNOUT_URL": self.turnout.control_url, "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def call(self, method: str, path: str, body: object = None) -> Any:
        async with self.turnout.control() as client:
            answer = await client.request(method, path, json=body)
            assert answer.is_success, answer.text
            return answer.json() if answer.content else None


async def _start(start_turnout: StartTurnout, pair: PostgresPair, **service: object) -> Stage:
    setup = Setup(
        protocol="postgresql",
        engines={"one": pair.primary.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        service={"replication": "none", **service},
    )
    return Stage(await start_turnout(setup), pair)


async def _connect(stage: Stage) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(Door(name="session", port=stage.turnout.port).dsn(), autocommit=True)


async def test_an_engine_and_its_policy_come_with_one_reload_and_go_with_another(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    stage = await _start(start_turnout, postgres_pair)
    client = await _connect(stage)
    try:
        stage.write(stage.both, goes_to="two")
        assert await stage.reload() == {
            **NOTHING, "added": ["service.app.engine.two"], "applied": ["service.app.policy.go: absent -> present"]
        }  # fmt: skip
        [view] = await stage.turnout.get("/v1/policies")
        assert view["policy"]["target_engine"] == "two"
        await stage.until_reached("two")
        switch = (await stage.call("POST", "/v1/policies/go/run"))["id"]

        async def is_over() -> bool:
            return bool((await stage.turnout.get(f"/v1/switches/{switch}"))["phase"] == "completed")

        await until(is_over, "the policy's switch to the engine is completed")
        assert await (await client.execute("select 1")).fetchone() == (1,), "the session moved with it"

        stage.write(stage.one, pool_size=7)
        assert await stage.reload() == {
            **NOTHING,
            "applied": ["service.app.policy.go: present -> absent", "service.app.pool_size: 200 -> 7"],
            "kept": ["service.app.engine.two: engine 'two' serves 'app'; switch to another engine first"],
        }
        assert await stage.engines() == ["one", "two"]
        assert await (await client.execute("select 2")).fetchone() == (2,)

        assert (await stage.turnout.switch("one"))["phase"] == "completed"
        assert await stage.command("reload") == "removed  service.app.engine.two\n"
        assert await stage.engines() == ["one"]
        assert await stage.command("reload") == "nothing has changed\n"
        assert await (await client.execute("select 3")).fetchone() == (3,)
    finally:
        await client.close()

    assert await stage.turnout.stop() == 0
    stage.write(stage.both)
    await stage.turnout.start()
    assert await stage.engines() == ["one", "two"], "that it went with the file does not keep it away"


async def test_a_reload_by_signal_does_the_same_and_logs_it(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """An engine that does not answer is added all the same, as by command."""
    stage = await _start(start_turnout, postgres_pair)
    stage.write({**stage.both, "down": "localhost:1"})
    assert stage.turnout.pid is not None
    os.kill(stage.turnout.pid, signal.SIGHUP)
    await until(lambda: "config reloaded" in stage.turnout.text_of_log(), "it is reloaded")
    [line] = [line for line in stage.turnout.text_of_log().splitlines() if "config reloaded" in line]
    assert "added=['service.app.engine.two', 'service.app.engine.down']" in line
    await stage.until_reached("two")
    assert (await stage.turnout.switch("two"))["phase"] == "completed"


async def test_one_engine_takes_the_place_of_another_at_its_address(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """And a name comes back at once, at an address that was another engine's."""
    stage = await _start(start_turnout, postgres_pair)
    client = await _connect(stage)
    try:
        stage.write(stage.both)
        await stage.reload()
        stage.write({**stage.one, "zwei": stage.both["two"]})
        assert await stage.reload() == {
            **NOTHING, "added": ["service.app.engine.zwei"], "removed": ["service.app.engine.two"]
        }  # fmt: skip
        stage.write(stage.both)
        await stage.reload()
        assert await stage.engines() == ["one", "two"]
        await stage.until_reached("two")
        assert (await stage.turnout.switch("two"))["phase"] == "completed"
        assert await (await client.execute("select 1")).fetchone() == (1,)

        stage.write({**stage.one, "zwei": stage.both["two"]})
        assert await stage.refused() == (
            f"service.app.engine.zwei: engine 'two' has the address {stage.both['two']} already; "
            "it cannot be removed now: engine 'two' serves 'app'; switch to another engine first"
        )
        assert await stage.engines() == ["one", "two"]
    finally:
        await client.close()


async def test_a_reload_that_goes_to_an_engine_which_was_removed_applies_nothing(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    stage = await _start(start_turnout, postgres_pair)
    stage.write(stage.both)
    await stage.reload()
    await stage.call("DELETE", "/v1/services/app/engines/two")
    back = f"`turnout engine add two {stage.both['two']}` brings it back"
    stays_away = f"it was removed while Turnout ran, and stays so whatever the file says; {back}"

    stage.write({**stage.both, "three": "localhost:1"}, goes_to="two", pool_size=7)
    why = (
        'service.app.policy.go.target_engine: service "app" would have no engine "two": '
        f"{stays_away}, or take this out of the file"
    )
    assert await stage.refused() == why
    assert stage.turnout.pid is not None
    os.kill(stage.turnout.pid, signal.SIGHUP)
    await until(lambda: "was not reloaded" in stage.turnout.text_of_log(), "the refusal is logged")
    assert why in stage.turnout.text_of_log()
    assert await stage.turnout.get("/v1/policies") == []
    assert await stage.engines() == ["one"]
    assert (await stage.turnout.get("/v1/config"))["service"]["app"]["pool_size"]["value"] == 200

    stage.write(stage.both)
    assert await stage.reload() == {**NOTHING, "kept": [f"service.app.engine.two: {stays_away}"]}
    await stage.command("engine", "add", "two", stage.both["two"])
    stage.write(stage.both, goes_to="two")
    assert await stage.reload() == {**NOTHING, "applied": ["service.app.policy.go: absent -> present"]}
    [view] = await stage.turnout.get("/v1/policies")
    assert view["policy"]["target_engine"] == "two"


async def test_an_engine_that_a_command_added_outlives_reloads_and_a_restart(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    stage = await _start(start_turnout, postgres_pair)
    await stage.command("engine", "add", "two", stage.both["two"])
    told = {
        **NOTHING,
        "kept": ["service.app.engine.two: it was added while Turnout ran; `turnout engine remove two` takes it out"],
    }
    assert await stage.reload() == told
    assert await stage.turnout.stop() == 0
    await stage.turnout.start()
    assert await stage.engines() == ["one", "two"]
    assert await stage.reload() == told
    assert (await stage.turnout.switch("two"))["phase"] == "completed"


async def test_a_start_with_a_file_that_goes_to_an_engine_which_was_removed_says_so(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """A reload refuses such a file; clients wait for a start."""
    stage = await _start(start_turnout, postgres_pair, pool_mode="transaction")
    stage.write(stage.both, pool_mode="transaction")
    await stage.reload()
    await stage.call("DELETE", "/v1/services/app/engines/two")
    assert await stage.turnout.stop() == 0
    stage.write(stage.both, goes_to="two", pool_mode="transaction", route=[{"to": ["two"]}])
    await stage.turnout.start()

    log = stage.turnout.text_of_log()
    for key in ("service.app.policy.go.target_engine", "service.app.route[0].to[0]"):
        [line] = [line for line in log.splitlines() if f"key={key} " in line]
        assert "names an engine that is not there" in line
        assert "`turnout engine add two" in line

    async def last() -> Any:
        [view] = await stage.turnout.get("/v1/policies")
        return view["last"]

    async def is_judged() -> bool:
        return bool(await last())

    await until(is_judged, "the policy is looked at")
    assert (await last())["code"] == "no_engine"
    assert "go: did not fire because service app has no engine two" in await stage.command("policy", "list")
    async with await _connect(stage) as client:
        assert await (await client.execute("select 1")).fetchone() == (1,), "a read goes to the engine that serves"

    await stage.command("engine", "add", "two", stage.both["two"])

    async def waits() -> bool:
        return bool((await last())["code"] == "waits")

    await until(waits, "the policy has its engine")
    assert "Traceback" not in stage.turnout.text_of_log()


async def test_what_still_needs_an_engine_keeps_it_and_the_reload_says_what(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    stage = await _start(start_turnout, postgres_pair)
    stage.write(stage.both)
    await stage.reload()
    stage.write(stage.one)

    async def kept() -> str:
        answer = await stage.reload()
        assert answer == {**NOTHING, "kept": answer["kept"]}
        [line] = answer["kept"]
        assert await stage.engines() == ["one", "two"]
        return line.removeprefix("service.app.engine.two: ")

    later = await stage.call("POST", "/v1/services/app/switch", {"target_engine": "two", "in_seconds": 3_600})
    assert await kept() == f"switch {later['id']} to engine 'two' waits for its turn; cancel that switch first"
    await stage.call("POST", f"/v1/switches/{later['id']}/cancel")

    policy = {"service": "app", "trigger": "manual", "target_engine": "two"}
    await stage.call("PUT", "/v1/policies/mine", policy)
    assert await kept() == "policy 'mine' goes to engine 'two'; remove that policy first"
    await stage.call("DELETE", "/v1/policies/mine")

    client = await _connect(stage)
    try:
        await client.execute("begin")
        running = await stage.call("POST", "/v1/services/app/switch", {"target_engine": "two"})
        assert await kept() == f"engine 'two' takes part in switch {running['id']}; wait until it has ended"
        await stage.call("POST", f"/v1/switches/{running['id']}/cancel")

        async def is_over() -> bool:
            return bool((await stage.turnout.get(f"/v1/switches/{running['id']}"))["phase"] == "aborted")

        await until(is_over, "the switch is undone")
    finally:
        await client.close()
    assert await stage.reload() == {**NOTHING, "removed": ["service.app.engine.two"]}


async def test_reads_that_still_go_to_an_engine_keep_it_until_the_restart_that_ends_the_route(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    stage = await _start(start_turnout, postgres_pair, pool_mode="transaction")
    stage.write(stage.both, pool_mode="transaction", route=[{"to": ["two"]}])
    answer = await stage.reload()
    assert (answer["added"], answer["needs_restart"]) == (
        ["service.app.engine.two"], ["service.app.route: 0 of them -> 1 of them, or others"],
    )  # fmt: skip
    assert await stage.turnout.stop() == 0
    await stage.turnout.start()

    stage.write(stage.one, pool_mode="transaction")
    answer = await stage.reload()
    [line] = answer["kept"]
    assert line == (
        "service.app.engine.two: a [[service.app.route]] sends reads to 'two'; "
        "take it out of the config, which needs a restart"
    )
    assert answer["needs_restart"] == ["service.app.route: 1 of them -> 0 of them, or others"]
    assert await stage.engines() == ["one", "two"]
