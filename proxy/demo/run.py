"""The demo from beginning to end: servers, a Turnout, a load, switches there and back, and the account of it.

Whatever ends it (its own end, an error, Ctrl-C, SIGTERM), load, Turnout and servers are stopped in this order and every
file is removed.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from proxy.demo.load import START_BALANCE, LoadSetup, Mishap, Outcome, Sample
from proxy.demo.options import DemoOptions, DemoResult, SwitchResult, Waits
from proxy.demo.servers import Bank, bank_for
from proxy.demo.view import View
from proxy.embedded import ServerFailed, Turnout
from proxy.embedded.turnout import ENDED, SERVICE
from proxy.tasks import cancel_and_wait, spawn

OPERATIONS_PER_S: Final = 600.0
"""Of all clients together: enough that every switch meets requests, little enough for two cores with two servers, a
proxy and the load on them."""

READY_S_MAX: Final = 30.0
"""How long a server that came back may take until a switch to it may begin."""

_ROOT: Final = str(Path(__file__).resolve().parents[2])


class LoadProcess:
    """`python -m proxy.demo.load` as a child."""

    def __init__(self, setup: LoadSetup, log: Path, on_sample: Callable[[Sample], None]) -> None:
        self._setup = setup
        self._log = log
        self._on_sample = on_sample
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._done: Outcome | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Until all clients are connected. Raises ServerFailed with its last words."""
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH", ""))))
        with open(self._log, "wb") as log:  # noqa: ASYNC230  (opened, not read)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "proxy.demo.load"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._setup) + b"\n")
        self._reader = spawn(self._read(), name="load")
        ready = spawn(self._ready.wait(), name="load ready")
        await asyncio.wait((ready, self._reader), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        await cancel_and_wait(ready)
        if not self._ready.is_set():
            raise ServerFailed(f"the load did not begin: {self._last_words()}")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            message = json.loads(line)
            if "ready" in message:
                self._ready.set()
            elif "done" in message:
                self._done = msgspec.convert(message["done"], Outcome)
            else:
                self._on_sample(msgspec.convert(message, Sample))

    async def work_until(self, at: float) -> None:
        """Return at that time of the monotonic clock, or when the load has ended by itself."""
        assert self._reader is not None
        await asyncio.wait((self._reader,), timeout=max(0.0, at - time.monotonic()))

    async def finish(self) -> Outcome:
        """Let the clients finish and take the account. Raises ServerFailed."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._reader is not None
        self._process.stdin.close()
        await asyncio.wait((self._reader,), timeout=30)
        if self._done is None:
            raise ServerFailed(f"the load did not end in order: {self._last_words()}")
        return self._done

    async def kill(self) -> None:
        """At once, whatever it does."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        await cancel_and_wait(self._reader)

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-5:]) or "it said nothing"


class Demo:
    """One run."""

    def __init__(self, options: DemoOptions, view: View) -> None:
        self.options = options
        self.view = view
        self.result = DemoResult(
            protocol=options.protocol,
            engines="",
            clients=options.clients,
            pool_mode=options.pool_mode,
            workers=options.workers,
        )
        self._bank: Bank = bank_for(options)
        self.log_tail = ""
        """The end of Turnout's log, if something went wrong."""

    async def run(self) -> DemoResult:
        """Raises ServerFailed if the demo could not be set up or broke; what the switches did is in the result."""
        async with AsyncExitStack() as stack:
            bank = self._bank
            self.view.says(f"starting two {self.options.protocol} servers with replication")
            await bank.open()
            stack.push_async_callback(bank.pair.close)
            self.result.engines = await bank.version()
            folder = bank.pair.workspace.path / "turnout"
            folder.mkdir()
            turnout = Turnout(bank.setup(), folder)
            stack.push_async_callback(self._stop, turnout)
            self.view.says(f"{self.result.engines}: blue is the primary, green follows; starting Turnout")
            await turnout.start()
            load = LoadProcess(self._load_setup(turnout), folder / "load.log", self._sampled)
            stack.push_async_callback(load.kill)
            await load.start()
            began = time.monotonic()
            self.view.says(f"{self.options.clients} clients work through 127.0.0.1:{turnout.port}")
            await self._switch_all(turnout, load, began)
            await load.work_until(began + self.options.seconds)
            outcome = await load.finish()
            self.result.seconds = round(time.monotonic() - began, 1)
            self.view.says("reading every acknowledged transfer back from the last primary")
            await self._account(outcome, Path(self._load_setup(turnout).result))
        return self.result

    # --- switches ----------------------------------------------------------------------------------------------------

    async def _switch_all(self, turnout: Turnout, load: LoadProcess, began: float) -> None:
        async with turnout.control(timeout_s=30) as client:
            for number in range(1, self.options.switches + 1):
                due = began + self.options.seconds * number / (self.options.switches + 1)
                await load.work_until(due)
                pair = self._bank.pair
                switch = await self._switch(client, number, pair.primary.name, pair.standby.name)
                self.result.switches.append(switch)
                self.view.switched(switch)
                if switch.phase != "completed":
                    self.result.trouble.append(f"switch {number} ended {switch.phase}: {switch.error}")
                    return
                if number == self.options.switches:
                    pair.primary, pair.standby = pair.standby, pair.primary
                    return
                rejoining = time.monotonic()
                switch.rejoined_by = await pair.swap()
                switch.rejoin_s = round(time.monotonic() - rejoining, 2)
                self.view.says(
                    f"{pair.standby.name} is back as a standby of {pair.primary.name}"
                    f" ({switch.rejoined_by}, {switch.rejoin_s:.1f} s)"
                )
                await self._wait_ready(client, pair.standby.name)

    async def _switch(self, client: httpx.AsyncClient, number: int, source: str, target: str) -> SwitchResult:
        """Ask for a switch and follow it to its end."""
        result = SwitchResult(
            number=number, id="", source=source, target=target, phase="refused", began_ns=time.monotonic_ns()
        )
        body = {"target_engine": target, "strategy": "graceful", "reason": "demo"}
        self.view.moved(number, source, target, "pending")
        try:
            answer = await client.post(f"/v1/services/{SERVICE}/switch", json=body)
            if answer.is_error:
                result.error = _problem(answer)
                return result
            record = answer.json()
            result.id = record["id"]
            # The figures are written a moment after the last phase was entered.
            while record["phase"] not in ENDED or (record["phase"] == "completed" and not record["figures"]):
                self.view.moved(number, source, target, record["phase"])
                await asyncio.sleep(0.02)
                answer = await client.get(f"/v1/switches/{result.id}")
                answer.raise_for_status()
                record = answer.json()
        except httpx.HTTPError as error:
            result.error = f"the control port failed: {error!r}"
            return result
        finally:
            result.ended_ns = time.monotonic_ns()
            self.view.moved(number, source, target, "")
        result.phase = record["phase"]
        result.error = record["error"]
        figures: dict[str, Any] = record["figures"] or {}
        if figures:
            result.hold_ms = msgspec.convert(figures["hold_ms"], Waits)
            for name in ("drain_ms", "fence_ms", "catchup_ms", "promote_ms", "cutover_ms", "blackout_ms"):
                setattr(result, name, figures[name])
            result.measured_by = figures["measured_by"]
            result.errors_visible = figures["errors_visible"]
        return result

    async def _wait_ready(self, client: httpx.AsyncClient, target: str) -> None:
        """Until the readiness report allows the way back. Not in time: the switch itself will say why it is refused."""
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            answer = await client.get(f"/v1/services/{SERVICE}/ready/{target}")
            if answer.is_success and answer.json()["is_ready"]:
                return
            await asyncio.sleep(0.2)

    # --- the account -------------------------------------------------------------------------------------------------

    async def _account(self, outcome: Outcome, file: Path) -> None:
        result, switches = self.result, self.result.switches
        pairs = array.array("q")
        pairs.frombytes(await asyncio.to_thread(file.read_bytes))
        found = await self._bank.journal_ids()
        lost = [(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2) if pairs[i] not in found]
        for _, at_ns in lost:
            # By the first switch that ended after the acknowledgement.
            for switch in switches:
                if switch.ended_ns > at_ns or switch is switches[-1]:
                    switch.acked_lost += 1
                    break
        for switch, following in zip(switches, [*switches[1:], None], strict=True):
            until_ns = following.began_ns if following is not None else sys.maxsize
            seen = sum(1 for one in outcome.mishaps if switch.began_ns <= one.at_ns < until_ns)
            switch.errors_visible = max(switch.errors_visible, seen)
        result.transactions = outcome.transactions
        result.reads = outcome.reads
        result.acked_lost = len(lost)
        result.errors_visible = max(len(outcome.mishaps), sum(switch.errors_visible for switch in switches))
        expected = self._bank.accounts * START_BALANCE
        total = await self._bank.total()
        self._judge(outcome.mishaps, total - expected)

    def _judge(self, mishaps: list[Mishap], money: int) -> None:
        result, trouble, limit = self.result, self.result.trouble, self.options.cutover_limit_ms
        if result.errors_visible:
            first = f"; the first: {mishaps[0].text}" if mishaps else ""
            trouble.append(f"clients saw {result.errors_visible} errors{first}")
        if result.acked_lost:
            trouble.append(f"{result.acked_lost} acknowledged transfers are not on the last primary")
        if money:
            trouble.append(f"the balances add up to {money:+d} of what they should")
        if not result.transactions:
            trouble.append("no transfer was acknowledged")
        trouble += [
            f"switch {switch.number}: cutover took {switch.cutover_ms:.1f} ms, the limit is {limit:g} ms"
            for switch in result.switches
            if switch.phase == "completed" and switch.cutover_ms >= limit
        ]

    # --- parts -------------------------------------------------------------------------------------------------------

    def _sampled(self, sample: Sample) -> None:
        self.result.max_latency_ms = max(self.result.max_latency_ms, sample.max_ms)
        self.view.sampled(sample)

    def _load_setup(self, turnout: Turnout) -> LoadSetup:
        return LoadSetup(
            protocol=self.options.protocol,
            host=turnout.host,
            port=turnout.port,
            user="app",
            password="secret",
            database="app",
            clients=self.options.clients,
            operations_per_s=OPERATIONS_PER_S,
            result=str(turnout.folder / "acknowledged"),
        )

    async def _stop(self, turnout: Turnout) -> None:
        try:
            await turnout.stop()
        except ServerFailed as error:
            self.result.trouble.append(error.text)
        finally:
            self.log_tail = "\n".join(turnout.text_of_log().splitlines()[-25:])


def _problem(answer: httpx.Response) -> str:
    """What the control port says against it, in one line."""
    try:
        problem = answer.json()
    except ValueError:
        return f"HTTP {answer.status_code}"
    remedy = f"; {problem['remedy']}" if problem.get("remedy") else ""
    return f"{problem.get('detail') or problem.get('title')}{remedy}"
