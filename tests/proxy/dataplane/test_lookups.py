"""Who asks the engine for a user, and how old an answer may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from protocols.postgres import WIRE
from protocols.wire import Startup
from proxy.dataplane.backend import Backend, open_backend
from proxy.dataplane.lookups import Lookups
from proxy.dataplane.reach import Reach
from proxy.embedded import PostgresPair
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.errors import LookupFailed

pytestmark = [pytest.mark.postgresql]

NUMBERED: Final = "select $1, nextval('public.questions')::text"
"""Gives each question its number as the secret."""


@pytest_asyncio.fixture
async def lookups(postgres_pair: PostgresPair) -> AsyncIterator[Lookups]:
    primary = postgres_pair.primary
    await primary.execute("create sequence questions", database="postgres")

    async def open_one(engine: str, startup: Startup) -> Backend:
        return await open_backend(WIRE, Reach(engine, primary.address), startup, PASSWORD, 10)

    made = Lookups("main", WIRE, open_one)
    try:
        yield made
    finally:
        made.close()
        await primary.execute("drop sequence questions", database="postgres")


async def ask(lookups: Lookups, query: str = NUMBERED, user: str = "anybody") -> str | None:
    return await lookups.secret_of("blue", Startup(SUPERUSER, "postgres", WIRE.inquiry_parameters), query, user)


async def test_an_answer_is_never_older_than_the_login_it_is_for(lookups: Lookups) -> None:
    assert [await ask(lookups) for _ in range(3)] == ["1", "2", "3"]


async def test_a_crowd_for_one_user_shares_the_question_that_is_not_asked_yet(lookups: Lookups) -> None:
    answers = await asyncio.gather(*(ask(lookups) for _ in range(20)))
    assert answers == ["1"] + ["2"] * 19, "the first was asked when the others came"


async def test_what_cannot_be_asked_is_told_to_all_who_wait_for_it(lookups: Lookups) -> None:
    answers = await asyncio.gather(*(ask(lookups, "select nobody") for _ in range(5)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {LookupFailed}
    assert await ask(lookups) == "1", "the next question is another one"


async def test_questions_for_different_users_are_not_mixed_up(lookups: Lookups) -> None:
    query = "select $1, 'of ' || $1::text"
    answers = await asyncio.gather(*(ask(lookups, query, f"user{number % 3}") for number in range(9)))
    assert answers == [f"of user{number % 3}" for number in range(9)]
