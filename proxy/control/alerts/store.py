"""What of the alerts survives a restart: those that fire or of whose end nobody was told, deliveries, silences.

Tables of the state file, made by `proxy.switch.journal`.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from proxy.control.alerts.model import Alert, AlertKey, Delivery, Silence

DELIVERIES_KEPT: Final = 1_000
"""Messages that are kept for looking at; the oldest goes first, also of those that wait."""


class AlertStore:
    """The tables. Every call is short and blocks (tens of microseconds); sqlite3.Error goes up."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    # --- alerts -------------------------------------------------------------------------------------------------------

    def alerts(self) -> list[Alert]:
        """As they were saved."""
        return [msgspec.json.decode(row[0], type=Alert) for row in self._db.execute("select alert from alerts")]

    def save(self, alert: Alert) -> None:
        self._db.execute("insert or replace into alerts values (?, ?)", (_text(alert.key), msgspec.json.encode(alert)))

    def drop(self, key: AlertKey) -> None:
        self._db.execute("delete from alerts where key = ?", (_text(key),))

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def add(self, delivery: Delivery) -> Delivery:
        """The same with its number."""
        cursor = self._db.execute(
            "insert into alert_deliveries (receiver, state, delivery) values (?, ?, ?)",
            (delivery.receiver, delivery.state, msgspec.json.encode(delivery)),
        )
        assert isinstance(cursor.lastrowid, int)
        delivery = msgspec.structs.replace(delivery, number=cursor.lastrowid)
        self._db.execute("delete from alert_deliveries where number <= ?", (delivery.number - DELIVERIES_KEPT,))
        self.update(delivery)
        return delivery

    def update(self, delivery: Delivery) -> None:
        """More is known of it."""
        self._db.execute(
            "update alert_deliveries set state = ?, delivery = ? where number = ?",
            (delivery.state, msgspec.json.encode(delivery), delivery.number),
        )

    def deliveries(self, limit: int) -> list[Delivery]:
        """Newest first."""
        rows = self._db.execute("select delivery from alert_deliveries order by number desc limit ?", (limit,))
        return [msgspec.json.decode(row[0], type=Delivery) for row in rows]

    def waiting(self) -> list[Delivery]:
        """Those that an earlier supervisor did not deliver, oldest first."""
        rows = self._db.execute("select delivery from alert_deliveries where state = 'waiting' order by number")
        return [msgspec.json.decode(row[0], type=Delivery) for row in rows]

    # --- silences -----------------------------------------------------------------------------------------------------

    def silences(self, now: float) -> list[Silence]:
        """Those that are not over; the others are forgotten."""
        self._db.execute("delete from alert_silences where until <= ?", (now,))
        rows = self._db.execute("select silence from alert_silences order by number")
        return [msgspec.json.decode(row[0], type=Silence) for row in rows]

    def silence(self, silence: Silence) -> Silence:
        """The same with its number."""
        cursor = self._db.execute(
            "insert into alert_silences (until, silence) values (?, ?)", (silence.until, msgspec.json.encode(silence))
        )
        assert isinstance(cursor.lastrowid, int)
        silence = msgspec.structs.replace(silence, number=cursor.lastrowid)
        self._db.execute(
            "update alert_silences set silence = ? where number = ?", (msgspec.json.encode(silence), silence.number)
        )
        return silence

    def unsilence(self, number: int) -> None:
        self._db.execute("delete from alert_silences where number = ?", (number,))


def _text(key: AlertKey) -> bytes:
    return msgspec.json.encode(key)
