"""How an alert reads, for each kind of receiver. Pure.

The JSON of a webhook is that of Prometheus' Alertmanager (its `webhook_config`, version 4), one alert in a message, so
that whatever takes its messages takes these: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any, Final

from proxy.control.alerts.model import Alert, Delivery

NEVER: Final = "0001-01-01T00:00:00Z"
"""How Alertmanager writes the end of what has not ended."""

_COLOURS: Final = {"critical": "#d32f2f", "warning": "#f9a825", "info": "#1976d2"}
_RESOLVED_COLOUR: Final = "#388e3c"


def headline(delivery: Delivery) -> str:
    """`[FIRING] critical active_engine_down: blue of shop does not answer …`: one line."""
    alert = delivery.alert
    if delivery.what == "test":
        return f"[TEST] {alert.text}"
    text = _line(alert.text)
    return f"[{delivery.what.upper()}] {alert.severity} {alert.name}: {text}"


def labels(alert: Alert) -> dict[str, str]:
    """What identifies it; those that are empty are left out."""
    subject = alert.subject
    found = {
        "alertname": alert.name,
        "severity": alert.severity,
        "service": subject.service,
        "engine": subject.engine,
        "worker": subject.worker,
    }
    return {name: value for name, value in found.items() if value}


def webhook(delivery: Delivery, source: str) -> dict[str, Any]:
    """Alertmanager's form; `source` is this Turnout's name."""
    alert = delivery.alert
    is_over = delivery.what == "resolved"
    of_it = labels(alert)
    annotations = {"summary": _line(alert.text)} | ({"description": alert.remedy} if alert.remedy else {})
    status = "resolved" if is_over else "firing"
    if delivery.what == "test":
        annotations["test"] = "true"
    return {
        "version": "4",
        "groupKey": ":".join(f"{name}={value}" for name, value in of_it.items()),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": delivery.receiver,
        "groupLabels": {"alertname": alert.name},
        "commonLabels": of_it,
        "commonAnnotations": annotations,
        "externalURL": source,
        "alerts": [
            {
                "status": status,
                "labels": of_it,
                "annotations": annotations,
                "startsAt": _when(alert.fired_at),
                "endsAt": _when(alert.resolved_at) if is_over else NEVER,
                "generatorURL": source,
                "fingerprint": fingerprint(of_it),
            }
        ],
    }


def slack(delivery: Delivery) -> dict[str, Any]:
    """The form of Slack's incoming webhooks."""
    alert = delivery.alert
    colour = _RESOLVED_COLOUR if delivery.what == "resolved" else _COLOURS[alert.severity]
    fields = [
        {"title": name, "value": _escaped(value), "short": True}
        for name, value in labels(alert).items()
        if name != "alertname"
    ]
    return {
        "text": _escaped(headline(delivery)),
        "attachments": [
            {
                "color": colour,
                "fallback": _escaped(headline(delivery)),
                "text": _escaped(alert.remedy),
                "fields": fields,
                "ts": int(alert.fired_at or delivery.at),
            }
        ],
    }


def email(delivery: Delivery, sender: str, to: Sequence[str], source: str) -> EmailMessage:
    """Plain text; mails about one alert have one thread."""
    alert = delivery.alert
    message = EmailMessage()
    message["From"] = sender
    message["To"] = ", ".join(to)
    message["Subject"] = _line(headline(delivery))[:200]
    message["Date"] = format_datetime(datetime.fromtimestamp(delivery.at, UTC))
    domain = sender.rpartition("@")[2]
    message["Message-ID"] = make_msgid(domain=domain)
    message["References"] = f"<{fingerprint(labels(alert))}.{int(alert.fired_at)}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    times = [("fired", alert.fired_at)] + ([("resolved", alert.resolved_at)] if delivery.what == "resolved" else [])
    rows: Mapping[str, str] = labels(alert) | {name: _when(at) for name, at in times if at} | {"turnout": source}
    table = "\n".join(f"{name + ':':<12}{value}" for name, value in rows.items())
    remedy = f"\nWhat to do: {alert.remedy}\n" if alert.remedy and delivery.what != "resolved" else ""
    message.set_content(f"{_line(alert.text)}\n{remedy}\n{table}\n")
    return message


def fingerprint(of_it: Mapping[str, str]) -> str:
    """The same for all messages about one alert, 16 hex digits."""
    text = "\0".join(f"{name}\0{of_it[name]}" for name in sorted(of_it) if name != "severity")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(text: str) -> str:
    """One line: what engines say may have several, and a header must not."""
    return " ".join(text.split())


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else NEVER


def _escaped(text: str) -> str:
    """The three characters that mean something to Slack."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
