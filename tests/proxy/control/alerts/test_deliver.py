"""Messages to real servers, and what is said of those that do not arrive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from proxy.config import ReceiverConfig, Secret
from proxy.control.alerts.deliver import deliver, where
from proxy.control.alerts.model import Alert, Delivery, State, Subject
from proxy.embedded import free_port
from proxy.embedded.certificate import write_certificate
from tests.proxy.control.alerts.receiving import Mail, mail, web

ALERT = Alert(
    name="active_engine_down", subject=Subject(service="shop", engine="blue"), severity="critical", state=State.FIRING,
    text="blue of shop does not answer: <no & never>\nsecond line", remedy="look at the server", since=90.0,
    held_at=100.0, fired_at=100.5,
)  # fmt: skip
FIRING = Delivery(number=1, at=101.0, receiver="ops", what="firing", alert=ALERT)
OVER = Delivery(
    number=2, at=161.0, receiver="ops", what="resolved",
    alert=Alert(**{**{name: getattr(ALERT, name) for name in ALERT.__struct_fields__}, "state": State.RESOLVED, "resolved_at": 160.0}),
)  # fmt: skip


def receiver(kind: str, url: str = "", **keys: Any) -> ReceiverConfig:
    if url:
        keys["url"] = Secret(env="URL", value=url)
    return ReceiverConfig(kind=kind, timeout_s=5, **keys)  # type: ignore[arg-type]


async def test_a_webhook_gets_the_json_that_alertmanager_sends() -> None:
    async with web() as server:
        to = receiver("webhook", f"{server.url}/in", token=Secret(env="T", value="t0ken"))
        assert (await deliver(to, FIRING)).text == "HTTP 200"
        assert (await deliver(to, OVER)).is_good
        [(_, headers, first), (_, _, last)] = server.requests
    assert headers["authorization"] == "Bearer t0ken"
    assert (first["version"], first["status"], first["receiver"]) == ("4", "firing", "ops")
    [alert] = first["alerts"]
    assert alert["labels"] == {
        "alertname": "active_engine_down", "severity": "critical", "service": "shop", "engine": "blue",
    }  # fmt: skip
    assert alert["annotations"]["description"] == "look at the server"
    assert (alert["startsAt"], alert["endsAt"]) == ("1970-01-01T00:01:40.500Z", "0001-01-01T00:00:00Z")
    assert (last["status"], last["alerts"][0]["endsAt"]) == ("resolved", "1970-01-01T00:02:40.000Z")
    assert last["alerts"][0]["fingerprint"] == alert["fingerprint"]


async def test_a_chat_gets_slacks_form_with_its_characters_escaped() -> None:
    async with web() as server:
        assert (await deliver(receiver("slack", f"{server.url}/services/T/B/x"), FIRING)).is_good
        [body] = server.at("/services/T/B/x")
    assert body["text"] == (
        "[FIRING] critical active_engine_down: blue of shop does not answer: &lt;no &amp; never&gt; second line"
    )
    [attachment] = body["attachments"]
    assert {"title": "service", "value": "shop", "short": True} in attachment["fields"]


async def test_a_mail_goes_over_starttls_with_a_login(tmp_path: Path) -> None:
    async with mail(tmp_path / "mail") as server:
        to = mailbox(server)
        assert (await deliver(to, FIRING)).text == "SMTP 250"
        assert (await deliver(to, OVER)).is_good
        first, last = server.messages
        assert server.recipients[0] == ["ops@example.org", "boss@example.org"]
    assert first["Subject"].startswith("[FIRING] critical active_engine_down: blue of shop")
    assert (first["From"], first["To"]) == ("turnout@example.org", "ops@example.org, boss@example.org")
    text = first.get_content()
    assert "What to do: look at the server" in text
    assert "engine:     blue" in text
    assert last["References"] == first["References"]
    assert "resolved:   1970-01-01T00:02:40.000Z" in last.get_content()


def mailbox(server: Mail, **keys: Any) -> ReceiverConfig:
    given: dict[str, Any] = {
        "server": f"127.0.0.1:{server.port}", "ca_file": str(server.certificate), "user": server.USER,
        "password": Secret(env="P", value=server.PASSWORD), "sender": "turnout@example.org",
        "to": ["ops@example.org", "boss@example.org"],
    }  # fmt: skip
    return receiver("email", **{**given, **keys})


async def test_a_mail_server_that_is_not_who_it_should_be_or_refuses_gets_nothing(tmp_path: Path) -> None:
    async with mail(tmp_path / "mail") as server:
        (tmp_path / "other").mkdir()
        _, other = write_certificate(tmp_path / "other")
        stranger = await deliver(mailbox(server, ca_file=str(other)), FIRING)
        assert not stranger.is_good
        assert not stranger.is_final
        assert "certificate verify failed" in stranger.text
        wrong = await deliver(mailbox(server, password=Secret(env="P", value="not this one")), FIRING)
        assert (wrong.is_good, wrong.is_final, wrong.text) == (False, True, "SMTP 535")
        server.refuses = "452 no room now"
        later = await deliver(mailbox(server), FIRING)
        assert (later.is_final, later.text) == (False, "SMTP 452")
        assert server.messages == []


async def test_a_command_gets_the_webhooks_json_on_its_stdin(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    program = f"import sys; open({str(kept)!r}, 'w').write(sys.stdin.read())"
    assert (await deliver(receiver("command", command=[sys.executable, "-c", program]), FIRING)).is_good
    assert json.loads(kept.read_text())["alerts"][0]["labels"]["engine"] == "blue"


async def test_a_command_may_leave_its_stdin_alone_and_fails_by_its_exit_code() -> None:
    outcome = await deliver(receiver("command", command=["sh", "-c", "echo full >&2; exit 3"]), FIRING)
    assert (outcome.is_good, outcome.text, outcome.output) == (False, "exit code 3", "full")


async def test_what_a_server_refuses_for_good_is_not_tried_again_and_what_may_pass_is() -> None:
    async with web() as server:
        to = receiver("webhook", f"{server.url}/in")
        for status, is_final in ((404, True), (302, True), (429, False), (503, False)):
            server.status = status
            outcome = await deliver(to, FIRING)
            assert (outcome.is_good, outcome.text, outcome.is_final) == (False, f"HTTP {status}", is_final)
    assert not (await deliver(receiver("webhook", f"http://127.0.0.1:{free_port()}/in"), FIRING)).is_final


async def test_a_secret_address_is_seen_nowhere_even_if_the_server_repeats_it() -> None:
    async with web() as server:
        server.status = 404
        path = "/services/T0123456/B0123456/canary4a7f1c"
        server.said = f"no such hook: {path} or canary4a7f1c"
        to = receiver("slack", f"{server.url}{path}?key=abcdefghijkl")
        outcome = await deliver(to, FIRING)
    assert outcome.output == "no such hook: *** or ***"
    assert where(to) == "127.0.0.1"


async def test_a_server_with_a_private_ca_is_trusted_by_its_file_only(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    async with web(certificate) as server:
        assert (await deliver(receiver("webhook", f"{server.url}/in", ca_file=str(certificate[1])), FIRING)).is_good
        assert "CERTIFICATE_VERIFY_FAILED" in (await deliver(receiver("webhook", f"{server.url}/in"), FIRING)).text
