"""What a client receives through Turnout is what the server alone sends, message by message.

The conversations are those of `tests/corpus/postgres` and generated ones; each is held directly and through Turnout.
"""

from __future__ import annotations

from typing import Self

import psycopg
import pytest

from tests.corpus.postgres import SETUP, Conversation, Step, conversations
from tests.e2e.doors import Door
from tests.e2e.talker import Talker, shown

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


class Hall:
    """Where conversations are held: a fresh connection each, with the tables as they should be."""

    def __init__(self, direct: Door) -> None:
        self._direct = direct
        self._other: psycopg.AsyncConnection | None = None

    async def __aenter__(self) -> Self:
        self._other = await psycopg.AsyncConnection.connect(self._direct.dsn(), autocommit=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._other is not None:
            await self._other.close()

    async def _do(self, sql: str) -> None:
        assert self._other is not None
        await self._other.execute(sql.encode())

    async def hold(self, door: Door, steps: list[Step], cut: int = 0) -> tuple[list[bytes], bool]:
        await self._do(SETUP)
        talker = await Talker.connect(door)
        try:
            return await talker.talk(steps, cut, self._do)
        finally:
            await talker.close()

    async def compare(self, door: Door, steps: list[Step], cuts: tuple[int, ...]) -> None:
        """Hold it directly, then through `door` with its bytes cut in each of these ways."""
        expected, was_closed = await self.hold(self._direct, steps)
        for cut in cuts:
            got, is_closed = await self.hold(door, steps, cut)
            assert got == expected, f"directly:\n{shown(expected)}\nthrough Turnout (cut {cut}):\n{shown(got)}"
            assert is_closed == was_closed, f"closed: directly {was_closed}, through Turnout {is_closed}"


@pytest.mark.parametrize("conversation", conversations(), ids=str)
async def test_a_written_conversation_is_answered_as_by_the_server(
    conversation: Conversation, postgres_door: Door, postgres_direct: Door
) -> None:
    """Sent as it stands, and byte by byte."""
    if postgres_door.name not in conversation.modes:
        pytest.skip("what it says belongs to a session of one server connection")
    async with Hall(postgres_direct) as hall:
        await hall.compare(postgres_door, conversation.steps, (0, 1))


async def test_the_login_tells_the_parameters_that_the_server_tells(postgres_door: Door, postgres_direct: Door) -> None:
    direct = await Talker.connect(postgres_direct)
    through = await Talker.connect(postgres_door)
    try:
        assert through.greeting == direct.greeting
    finally:
        await direct.close()
        await through.close()
