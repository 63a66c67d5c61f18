"""How many backends and clients there are in the whole service: counters that all workers share.

A limit such as `pool_size` holds for the service, however many workers there are and however unevenly the kernel
spreads the clients over them. Shares handed out to the workers would refuse a client in one worker while another's
share lies idle; so each worker writes its own counts into one mapped file and reads those of the others.

Theory of operation: one column per worker, written by that worker only, and one row per key. `take` raises the own
count first and then adds up the row: of two workers that take the last seat at the same time none may get it, but never
both (the one that lost asks again at its next tick). A worker that begins clears its column, so the counts of one that
was killed go when its successor comes. Rows are found by a hash of the key and given out under a file lock; a row
whose counts are all zero may be given to another key, hence a worker that holds nothing in a row asks for it anew.

Beside what is taken, a worker writes how many of its clients wait for a seat: who has idle backends of that row
closes one (`Pool.tick`).
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

Key = tuple[str, ...]
"""What is counted: a word and names, as `("pool", service, engine, database, user)`."""

WORKERS_MAX: Final = 64
"""Columns; the config allows no more workers."""

ROWS: Final = 8192
"""Keys that may be counted at a time."""

_HASH_BYTES: Final = 16
_EMPTY: Final = bytes(_HASH_BYTES)
_TAKEN_AT: Final = ROWS * _HASH_BYTES // 4
_WANTED_AT: Final = _TAKEN_AT + WORKERS_MAX * ROWS
_SIZE: Final = 4 * (_WANTED_AT + WORKERS_MAX * ROWS)


class Seats:
    """See the module. `path` is None for a process that is alone (tests)."""

    def __init__(self, path: Path | None, index: int, workers: int) -> None:
        assert 0 <= index < WORKERS_MAX
        self.workers = workers
        self._index = index
        self._rows: dict[Key, int] = {}
        self._fd = -1
        if path is None:
            self._map = mmap.mmap(-1, _SIZE)
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Sparse: only the pages in use take room.
            os.ftruncate(self._fd, _SIZE)
            self._map = mmap.mmap(self._fd, _SIZE)
        self._cells = memoryview(self._map).cast("I")
        for column in (_TAKEN_AT, _WANTED_AT):
            begin = 4 * (column + index * ROWS)
            if self._map[begin : begin + 4 * ROWS].strip(b"\0"):
                self._map[begin : begin + 4 * ROWS] = bytes(4 * ROWS)

    def take(self, key: Key, limit: int) -> bool:
        """One more of `key`, unless there are `limit` in all workers already; 0: no limit."""
        row = self._raise(_TAKEN_AT, key, 1)
        if row is None:
            return False
        if limit and self._sum(_TAKEN_AT, row) > limit:
            self._cells[_TAKEN_AT + self._index * ROWS + row] -= 1
            return False
        return True

    def give(self, key: Key) -> None:
        """One less of `key`: what `take` gave."""
        cell = _TAKEN_AT + self._index * ROWS + self._rows[key]
        assert self._cells[cell] > 0, f"a seat of {key} is given back twice"
        self._cells[cell] -= 1

    def taken(self, key: Key) -> int:
        """In all workers."""
        row = self._find(key)
        return 0 if row is None else self._sum(_TAKEN_AT, row)

    def want(self, key: Key, change: int) -> None:
        """So many more (or less) clients of this worker wait for a seat of `key`."""
        if change > 0:
            self._raise(_WANTED_AT, key, change)
        elif change < 0 and key in self._rows:
            cell = _WANTED_AT + self._index * ROWS + self._rows[key]
            self._cells[cell] = max(0, self._cells[cell] + change)

    def wanted(self, key: Key) -> int:
        """Clients of all workers that wait for a seat of `key`."""
        row = self._find(key)
        return 0 if row is None else self._sum(_WANTED_AT, row)

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        if self._fd >= 0:
            os.close(self._fd)

    # --- rows ---

    def _sum(self, column: int, row: int) -> int:
        # A worker beyond the config's number drains and ends; nobody would clear its column.
        columns = max(self.workers, self._index + 1)
        return sum(self._cells[column + row : column + columns * ROWS : ROWS])

    def _is_held(self, row: int) -> bool:
        """This worker counts something there, so nobody gives the row to another key."""
        own = self._index * ROWS + row
        return self._cells[_TAKEN_AT + own] > 0 or self._cells[_WANTED_AT + own] > 0

    def _find(self, key: Key) -> int | None:
        """The row of `key` if it has one, whoever made it."""
        row = self._rows.get(key)
        name = _hash(key)
        if row is not None and self._name(row) == name:
            return row
        return self._search(name)[0]

    def _raise(self, column: int, key: Key, change: int) -> int | None:
        """Raise this worker's count; the row, or None if all rows are in use."""
        own = column + self._index * ROWS
        row = self._rows.get(key)
        if row is not None and self._is_held(row):
            self._cells[own + row] += change
            return row
        name = _hash(key)
        # Up to the raised count the row may be given to another key, hence inside of the lock.
        with self._locked():
            found, free = self._search(name)
            if found is None:
                if free is None:
                    return None
                found = free
                self._map[found * _HASH_BYTES : (found + 1) * _HASH_BYTES] = name
            if len(self._rows) >= ROWS:
                self._rows = {known: row for known, row in self._rows.items() if self._is_held(row)}
            self._rows[key] = found
            self._cells[own + found] += change
            return found

    def _name(self, row: int) -> bytes:
        return self._map[row * _HASH_BYTES : (row + 1) * _HASH_BYTES]

    def _search(self, name: bytes) -> tuple[int | None, int | None]:
        """The row with this name, and one that could get it: never used, or with nothing counted in any column."""
        first = int.from_bytes(name[:4], "big") % ROWS
        free: int | None = None
        for step in range(ROWS):
            row = (first + step) % ROWS
            held = self._name(row)
            if held == name:
                return row, row
            if held == _EMPTY:
                return None, row if free is None else free
            if free is None and not self._is_counted(row):
                free = row
        return None, free

    def _is_counted(self, row: int) -> bool:
        cells = self._cells
        return any(
            cells[column + worker * ROWS + row] for column in (_TAKEN_AT, _WANTED_AT) for worker in range(WORKERS_MAX)
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._fd < 0:
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def _hash(key: Key) -> bytes:
    return hashlib.blake2b("\0".join(key).encode("utf-8", "surrogateescape"), digest_size=_HASH_BYTES).digest()
