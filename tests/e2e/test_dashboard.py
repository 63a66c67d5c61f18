"""The dashboard in a real Chromium: a whole switch by hand, and nothing asked of anybody but Turnout.

It needs Debian's `chromium`, which `tools/setup.sh test` gets where it can; without one it is left out, as pytest's header says.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import asyncpg
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from proxy.embedded import PostgresPair, Turnout
from proxy.embedded.postgres import PASSWORD
from proxy.tasks import cancel_and_wait, spawn
from tests.conftest import CHROMIUM
from tests.e2e.test_control import TOKENS, setup_for
from tests.kit.turnouts import StartTurnout

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.browser]

SHOTS = os.environ.get("TURNOUT_SHOTS")
"""Folder for pictures of every page, for people to look at."""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        one = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        await one.close()


class Seen:
    """What a page asked for and complained about."""

    def __init__(self, page: Page) -> None:
        self.urls: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)


async def picture(page: Page, name: str) -> None:
    if SHOTS is None:
        return
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        await page.emulate_media(color_scheme=scheme)
        for device, width, height in (("desktop", 1280, 900), ("phone", 390, 844)):
            await page.set_viewport_size({"width": width, "height": height})
            await page.wait_for_timeout(300)
            await page.screenshot(path=Path(SHOTS) / f"{name}-{device}-{scheme}.png", full_page=True)
    await page.set_viewport_size({"width": 1280, "height": 900})


async def log_in(turnout: Turnout) -> Any:
    return await asyncpg.connect(host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app")


async def _go_on(session: Any) -> None:
    while True:
        await session.fetchval("select 1")


async def test_a_person_plans_confirms_and_watches_a_switch_and_reads_its_report(
    fresh_postgres_pair: PostgresPair, start_turnout: StartTurnout, browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "tokens").mkdir()
    setup = setup_for(fresh_postgres_pair, tmp_path / "tokens")
    setup.top = {**setup.top, "alerts": {"receiver": {"nobody": {"kind": "command", "command": ["false"]}}}}
    turnout = await start_turnout(setup)
    source, target = fresh_postgres_pair.primary.name, fresh_postgres_pair.standby.name
    pinned, session = await log_in(turnout), await log_in(turnout)
    await pinned.execute("begin; declare c cursor with hold for select 1; commit")
    before = await session.fetchval("select inet_server_port()")
    page = await browser.new_page()
    page.set_default_timeout(20_000)
    seen = Seen(page)

    await page.goto(turnout.control_url)
    await page.locator("#token").fill("wrong")
    await page.keyboard.press("Enter")
    await expect(page.locator("#login-why")).to_contain_text("token")
    await page.locator("#token").fill(TOKENS["operator"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="app")).to_be_visible()
    await expect(page.locator("#live")).to_have_text("live")
    await expect(page.get_by_text("active", exact=True)).to_have_count(1)
    # The status comes with the events now, and need not be asked for.
    await page.route("**/v1/status", lambda route: route.abort())
    third = await log_in(turnout)
    await expect(page.get_by_text("3 sessions")).to_be_visible()
    await third.close()
    await expect(page.get_by_text("2 sessions")).to_be_visible()
    await page.unroute("**/v1/status")
    for _ in range(200):
        await session.fetchval("select 1")
    await picture(page, "overview")

    await page.get_by_role("link", name="Sessions").click()
    await expect(page.get_by_text("1 to 2 of 2")).to_be_visible()
    await expect(page.get_by_role("link", name="D: pinned: 1")).to_be_visible()
    await expect(page.get_by_text("Pinned by: with hold cursor (1).")).to_be_visible()
    await page.get_by_label("Portability").select_option("D")
    await expect(page.get_by_text("1 to 1 of 1")).to_be_visible()
    await picture(page, "sessions")
    await pinned.execute("close c")
    for name in ("Pools", "Policies", "History"):
        await page.get_by_role("link", name=name).click()
        await expect(page.get_by_role("heading", name=name)).to_be_visible()
        await picture(page, name.lower())
    await page.get_by_role("link", name="Alerts").click()
    await page.get_by_role("button", name="Send a test message to nobody").click()
    await expect(page.get_by_text("nobody: failed, exit code 1")).to_be_visible()
    await picture(page, "alerts")

    remark = page.get_by_text("disabled by an operator: app")
    async with turnout.control() as control:
        for what, is_off in (("disable", True), ("enable", False)):
            (await control.post(f"/v1/databases/{what}", json={"database": "app"})).raise_for_status()
            await page.get_by_role("link", name="Overview").click()
            await expect(remark).to_have_count(1 if is_off else 0)
    await page.get_by_role("link", name=f"Plan a switch of app to {target}").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("Ready: the switch may begin.")).to_be_visible()
    await picture(page, "plan")
    button = page.get_by_role("button", name=f"Switch app to {target}")
    await expect(button).to_be_disabled()
    await page.get_by_label(f"Type {target}").fill(source)
    await expect(button).to_be_disabled()
    await page.get_by_label(f"Type {target}").fill(target)
    busy = spawn(_go_on(pinned), name="a client's work")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="completed")).to_be_visible()
    await cancel_and_wait(busy)
    assert await session.fetchval("select inet_server_port()") != before
    steps = await page.locator(".timeline li strong").all_inner_texts()
    assert steps[:3] == ["pending", "validating", "preparing"]
    assert {"holding", "fencing", "promoting", "cutting over", "releasing", "completed"} <= set(steps)
    waited = (await turnout.get("/v1/switches?limit=1"))[0]["figures"]["affected_transactions"]
    assert waited
    await expect(page.locator(".dots circle")).to_have_count(waited)
    await picture(page, "watch")
    await page.get_by_role("link", name="Read the report").click()
    await expect(page.get_by_role("heading", name="Proof")).to_be_visible()
    await expect(page.get_by_text("a write was refused with 25006")).to_be_visible()
    await picture(page, "report")
    await page.emulate_media(media="print")
    await expect(page.get_by_role("button", name="Print")).to_be_hidden()
    await page.emulate_media(media="screen")
    await page.get_by_role("link", name="History").click()
    await expect(page.get_by_role("link", name="report")).to_have_count(1)

    assert {url.split("/")[2] for url in seen.urls} == {turnout.control_url.split("/")[2]}, "nothing leaves the host"
    assert not [one for one in seen.complaints if "401" not in one and "ERR_FAILED" not in one]
    await session.close()
    await pinned.close()
