"""A server is killed, and everybody who is to be told is told; it comes back, and they are told that, too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded import PostgresServer, Setup, Workspace
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until
from tests.proxy.control.alerts.receiving import mail, web

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

KEPT = """
import json, sys
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(json.load(sys.stdin)) + "\\n")
"""


async def test_a_killed_engine_is_told_to_webhook_chat_mailbox_and_command_and_so_is_its_return(
    start_turnout: StartTurnout, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    async with web() as server, mail(tmp_path / "mail") as mailbox:
        (tmp_path / "hook").write_text(f"{server.url}/hook")
        (tmp_path / "chat").write_text(f"{server.url}/chat")
        (tmp_path / "smtp").write_text(mailbox.PASSWORD)
        (tmp_path / "keep.py").write_text(KEPT)
        receivers: dict[str, dict[str, Any]] = {
            "hook": {"kind": "webhook", "url": {"file": str(tmp_path / "hook")}},
            "chat": {"kind": "slack", "url": {"file": str(tmp_path / "chat")}},
            "mail": {
                "kind": "email", "server": f"127.0.0.1:{mailbox.port}", "ca_file": str(mailbox.certificate),
                "user": mailbox.USER, "password": {"file": str(tmp_path / "smtp")}, "sender": "turnout@example.org",
                "to": ["dba@example.org"],
            },
            "script": {"kind": "command", "command": [sys.executable, str(tmp_path / "keep.py"), str(kept)]},
        }  # fmt: skip
        rule = {"when": "engine_down", "for_s": 0.5, "severity": "critical"}
        with Workspace("turnout-alerts-", niceness=10) as place:
            blue = await PostgresServer.create(place, "blue", fsync=False)
            try:
                await blue.start()
                turnout = await start_turnout(
                    Setup(
                        protocol="postgresql", engines={"blue": blue.address}, admin_user="postgres",
                        admin_password="secret", users={}, auth_method="trust", databases=["app"],
                        service={"failover": {"automatic": False, "probe_interval_s": 0.1}},
                        top={"alerts": {"defaults": False, "rule": {"blue_down": rule}, "receiver": receivers}},
                    )
                )  # fmt: skip

                def told(status: str) -> bool:
                    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
                    return (
                        [body["status"] for body in server.at("/hook")][-1:] == [status]
                        and [body["text"].startswith(f"[{status.upper()}]") for body in server.at("/chat")][-1:]
                        == [True]
                        and [one["Subject"].startswith(f"[{status.upper()}]") for one in mailbox.messages][-1:]
                        == [True]
                        and [body["status"] for body in lines][-1:] == [status]
                    )

                await blue.kill()
                await until(lambda: told("firing"), "all four were told that it fires")
                [alert] = await turnout.get("/v1/alerts")
                assert (alert["state"], alert["subject"]["engine"]) == ("firing", "blue")

                async def is_counted() -> bool:
                    async with turnout.control() as client:
                        text = (await client.get("/metrics")).text
                    assert 'turnout_alerts{alert="blue_down",severity="critical",state="firing"} 1.0' in text
                    return 'turnout_alert_messages_total{outcome="delivered",receiver="mail"} 1.0' in text

                await until(is_counted, "the mail is counted")
                await blue.start()
                await until(lambda: told("resolved"), "all four were told that it is over")
                assert (len(server.at("/hook")), len(server.at("/chat")), len(mailbox.messages)) == (2, 2, 2)
                assert len(kept.read_text().splitlines()) == 2

                async def are_delivered() -> bool:
                    sent = await turnout.get("/v1/alerts/deliveries")
                    return sorted(one["receiver"] for one in sent if one["state"] == "delivered") == twice

                twice = sorted([*receivers] * 2)
                await until(are_delivered, "all messages are kept as delivered")
            finally:
                await blue.stop("immediate")
