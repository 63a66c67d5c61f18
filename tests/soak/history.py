"""What clients were told, and what is there in the end.

Every transaction has a number nobody else uses. It puts this number into a journal, which has no key to keep doubles out,
or appends it to one of many lists, or both. From that follows, as in Elle (Kingsbury, Alvaro, 2020: lists that are only
appended to show their own history):

lost       acknowledged, and not there
doubled    there twice
phantom    there, although its client was told for certain that it is not, or although nobody wrote it
torn       one half of a transaction is there
reordered  a list that was read is no beginning of what the list is in the end
stale      a list that was read lacks what had been acknowledged before the read began
money      transfers move it and make none
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

SHOWN_MAX: Final = 10
"""Numbers that one complaint names."""


class Outcome(enum.Enum):
    """What a client was told of a transaction."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """It is certainly not there."""
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Found:
    """What is on the last primary."""

    journal: Counter[int] = field(default_factory=Counter)
    lists: dict[int, list[int]] = field(default_factory=dict)
    money: int = 0


@dataclass(slots=True)
class _Entry:
    outcome: Outcome | None
    """None: it is under way."""
    list_number: int | None
    is_in_journal: bool


class History:
    """What the clients of one run saw. Only one thread may use it."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._acknowledged: dict[int, set[int]] = {}
        self._longest: dict[int, tuple[int, ...]] = {}
        self._complaints: list[str] = []

    def begins(self, number: int, *, list_number: int | None, is_in_journal: bool) -> None:
        """A transaction of this number is about to be tried."""
        assert number not in self._entries, "numbers are used once"
        self._entries[number] = _Entry(None, list_number, is_in_journal)

    def ended(self, number: int, outcome: Outcome) -> None:
        entry = self._entries[number]
        entry.outcome = outcome
        if outcome is Outcome.ACKNOWLEDGED and entry.list_number is not None:
            self._acknowledged.setdefault(entry.list_number, set()).add(number)

    def known_of(self, list_number: int) -> frozenset[int]:
        """What a read that begins now has to find in a list."""
        return frozenset(self._acknowledged.get(list_number, ()))

    def read(self, list_number: int, items: Sequence[int], known: frozenset[int]) -> None:
        """A list was read by a client; `known` as it was when the read began."""
        if missing := known - set(items):
            self._complaints.append(f"stale: list {list_number} was read without {_some(missing)}")
        longest = self._longest.get(list_number, ())
        shorter, longer = sorted((longest, tuple(items)), key=len)
        if longer[: len(shorter)] != shorter:
            self._complaints.append(f"reordered: list {list_number} was read as {list(longest)} and as {list(items)}")
        self._longest[list_number] = longer

    def count(self, outcome: Outcome) -> int:
        return sum(entry.outcome is outcome for entry in self._entries.values())

    def is_acknowledged(self, number: int) -> bool:
        return self._entries[number].outcome is Outcome.ACKNOWLEDGED

    def lost(self, found: Found) -> list[int]:
        """Acknowledged, and not there or there in part."""
        return sorted(
            number
            for number, entry in self._entries.items()
            if entry.outcome is Outcome.ACKNOWLEDGED and not all(self._halves(number, entry, found))
        )

    def judge(self, found: Found, money: int) -> list[str]:
        """What is wrong, for people; nothing if all is well. `money` is what there was in the beginning."""
        complaints = list(self._complaints)
        items = Counter(number for content in found.lists.values() for number in content)
        wrong: dict[str, list[int]] = {"lost": self.lost(found)}
        wrong["doubled"] = [number for counts in (found.journal, items) for number, n in counts.items() if n > 1]
        wrong["phantom"] = [
            number
            for number in found.journal.keys() | items.keys()
            if number not in self._entries or self._entries[number].outcome is Outcome.REFUSED
        ]
        wrong["torn"] = [
            number for number, entry in self._entries.items() if len(set(self._halves(number, entry, found))) == 2
        ]
        complaints += [f"{what}: {_some(numbers)}" for what, numbers in wrong.items() if numbers]
        for list_number, read in self._longest.items():
            content = tuple(found.lists.get(list_number, ()))
            if content[: len(read)] != read:
                complaints.append(f"reordered: list {list_number} was read as {list(read)} and is {list(content)}")
        if found.money != money:
            complaints.append(f"money: there is {found.money}, there was {money}")
        return complaints

    @staticmethod
    def _halves(number: int, entry: _Entry, found: Found) -> list[bool]:
        halves = [number in found.journal] if entry.is_in_journal else []
        if entry.list_number is not None:
            halves.append(number in found.lists.get(entry.list_number, ()))
        return halves


def items_of(text: str) -> list[int]:
    """A list as the servers keep it: `,12,7`."""
    return [int(item) for item in text.split(",") if item]


def found_in(journal: Sequence[int], lists: Mapping[int, str], money: int) -> Found:
    """What a server answered."""
    return Found(Counter(journal), {number: items_of(text) for number, text in lists.items()}, money)


def _some(numbers: Sequence[int] | set[int] | frozenset[int]) -> str:
    ordered = sorted(numbers)
    more = f" and {len(ordered) - SHOWN_MAX} more" if len(ordered) > SHOWN_MAX else ""
    return ", ".join(map(str, ordered[:SHOWN_MAX])) + more
