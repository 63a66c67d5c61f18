"""One try to deliver one message. Never raises for what the other side does; nothing that it returns has a secret.

Who is asked is what the config names: redirects are not followed, proxies of the environment are not used.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Collection
from typing import Final

import aiosmtplib
import msgspec
import structlog

from proxy.config import ReceiverConfig, Secret, parse_address
from proxy.control.alerts import message
from proxy.control.alerts.model import Delivery
from proxy.hidden import host_of, parts_of, secrets_of
from proxy.outside import Outcome, call, clean, run_command
from proxy.tls import TlsProblem, receiver_tls

_log = structlog.get_logger("turnout.alerts")

SOURCE: Final = f"turnout@{socket.gethostname()}"
"""Who tells: this machine's Turnout."""


async def deliver(receiver: ReceiverConfig, delivery: Delivery) -> Outcome:
    """One try."""
    hidden = secrets_of(receiver)
    if receiver.url is not None and receiver.url.value:
        hidden |= parts_of(receiver.url.value)
    try:
        outcome = await _deliver(receiver, delivery)
    except TlsProblem as problem:
        outcome = Outcome(False, problem.text, "")
    except Exception:  # noqa: BLE001  a mistake of ours with one message must be seen, and not hold up those behind it
        _log.exception("a message could not be made or sent", kind=receiver.kind)
        outcome = Outcome(False, "internal error; the log says more", "", is_final=True)
    return _shown(outcome, hidden)


def where(receiver: ReceiverConfig) -> str:
    """What may be shown of where messages go."""
    match receiver.kind:
        case "webhook" | "slack":
            return host_of(_value(receiver.url))
        case "email":
            return ", ".join(receiver.to)
        case "command":
            return receiver.command[0]


async def _deliver(receiver: ReceiverConfig, delivery: Delivery) -> Outcome:
    match receiver.kind:
        case "webhook" | "slack":
            body = message.slack(delivery) if receiver.kind == "slack" else message.webhook(delivery, SOURCE)
            return await call(
                "POST",
                _value(receiver.url),
                receiver.timeout_s,
                body=msgspec.json.encode(body),
                token=_value(receiver.token),
                tls=receiver_tls(receiver.ca_file),
            )
        case "email":
            return await _mail(receiver, delivery)
        case "command":
            body = message.webhook(delivery, SOURCE)
            return await run_command(receiver.command, {}, receiver.timeout_s, stdin=msgspec.json.encode(body))


async def _mail(receiver: ReceiverConfig, delivery: Delivery) -> Outcome:
    host, port = parse_address(receiver.server)
    context = receiver_tls(receiver.ca_file) if receiver.tls != "none" else None
    try:
        refused, answer = await aiosmtplib.send(
            message.email(delivery, receiver.sender, receiver.to, SOURCE),
            sender=receiver.sender,
            recipients=receiver.to,
            hostname=host,
            port=port,
            username=receiver.user or None,
            password=_value(receiver.password) or None,
            timeout=receiver.timeout_s,
            use_tls=receiver.tls == "tls",
            start_tls=receiver.tls == "starttls",
            tls_context=context if context is not None else _known(receiver),
        )
    except aiosmtplib.SMTPResponseException as error:
        # 5xx: the server will say the same again (RFC 5321 section 4.2.1).
        return Outcome(False, f"SMTP {error.code}", error.message, is_final=500 <= error.code < 600)
    except aiosmtplib.SMTPRecipientsRefused as error:
        is_final = all(500 <= one.code < 600 for one in error.recipients)
        return Outcome(False, "SMTP: no recipient was taken", str(error.recipients[0].message), is_final)
    except TimeoutError:
        return Outcome(False, f"no answer within {receiver.timeout_s:g} s", "")
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        return Outcome(False, f"cannot be reached: {error}", "")
    if refused:
        return Outcome(False, f"SMTP: {', '.join(refused)} was not taken", answer, is_final=True)
    return Outcome(True, "SMTP 250", answer)


def _known(receiver: ReceiverConfig) -> ssl.SSLContext | None:
    return ssl.create_default_context() if receiver.tls != "none" else None


def _value(secret: Secret | None) -> str:
    return (secret.value or "") if secret is not None else ""


def _shown(outcome: Outcome, hidden: Collection[str]) -> Outcome:
    return outcome._replace(text=clean(outcome.text, hidden), output=clean(outcome.output, hidden))
