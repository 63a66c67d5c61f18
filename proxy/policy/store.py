"""What of the policies survives a restart: those that were set by command, who is switched off, who rests, the history.

Tables of the state file, made by `proxy.switch.journal`. Which policy wins: what stands in the config file is said there and
nowhere else, so a name of the file cannot be set by command. Only whether it is enabled is remembered here for both kinds:
who switches an automatism off in a hurry must not have to edit a file, and it stays off until somebody switches it on.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from proxy.policy.model import Code, Decision, Policy
from proxy.switch.journal import transaction

KEPT: Final = 1_000
"""Decisions of each kind that are kept, those that did something and those that did not; the oldest go first."""

_ACTS: Final = (Code.FIRED, Code.REFUSED, Code.SWITCHED, Code.UNDONE)


class Standings(msgspec.Struct, frozen=True):
    """What was said and found of one policy beside its rules."""

    is_enabled: bool | None = None
    """None: as the policy itself says."""
    is_resting: bool = False


class PolicyStore:
    """The tables. Every call is short and blocks (tens of microseconds); sqlite3.Error goes up."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    # --- policies -----------------------------------------------------------------------------------------------------

    def policies(self) -> list[Policy]:
        """Those that were set by command."""
        return [msgspec.json.decode(row[0], type=Policy) for row in self._db.execute("select policy from policies")]

    def put(self, policy: Policy) -> None:
        """Set or replace. It is enabled as it says itself, and does not rest."""
        with transaction(self._db):
            self._db.execute(
                "insert or replace into policies values (?, ?)", (policy.name, msgspec.json.encode(policy))
            )
            self._db.execute("delete from policy_standings where name = ?", (policy.name,))

    def drop(self, name: str) -> None:
        with transaction(self._db):
            self._db.execute("delete from policies where name = ?", (name,))
            self._db.execute("delete from policy_standings where name = ?", (name,))

    # --- standings ----------------------------------------------------------------------------------------------------

    def standings(self) -> dict[str, Standings]:
        """By name; those of policies that are gone from the config file are among them."""
        rows = self._db.execute("select name, is_enabled, is_resting from policy_standings")
        return {name: Standings(None if on is None else bool(on), bool(rests)) for name, on, rests in rows}

    def stand(self, name: str, standings: Standings) -> None:
        """Remember."""
        self._db.execute(
            "insert or replace into policy_standings values (?, ?, ?)",
            (name, standings.is_enabled, standings.is_resting),
        )

    # --- history ------------------------------------------------------------------------------------------------------

    def add(self, decision: Decision) -> int:
        """Returns its number, for `replace`."""
        acts = decision.code in _ACTS
        with transaction(self._db):
            number = self._db.execute(
                "insert into policy_decisions (at, acts, policy, decision) values (?, ?, ?, ?)",
                (decision.at, acts, decision.policy, msgspec.json.encode(decision)),
            ).lastrowid
            assert isinstance(number, int)
            self._db.execute(
                "delete from policy_decisions where acts = ? and number <= ("
                " select number from policy_decisions where acts = ? order by number desc limit 1 offset ?)",
                (acts, acts, KEPT),
            )
        return number

    def replace(self, number: int, decision: Decision) -> None:
        """The same decision, of which more is known now."""
        self._db.execute(
            "update policy_decisions set decision = ? where number = ?", (msgspec.json.encode(decision), number)
        )

    def history(self, limit: int, policy: str | None = None) -> list[Decision]:
        """Newest first."""
        where, values = ("", [limit]) if policy is None else ("where policy = ?", [policy, limit])
        rows = self._db.execute(f"select decision from policy_decisions {where} order by number desc limit ?", values)
        return [msgspec.json.decode(row[0], type=Decision) for row in rows]
