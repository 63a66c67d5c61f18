"""The pool, with backends over real socket pairs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from protocols import postgres
from protocols.wire import BackendFacts, Startup
from proxy.dataplane.backend import Backend
from proxy.dataplane.pool import Pool, PoolRules, Waiter
from proxy.dataplane.reach import Reach
from proxy.dataplane.registry import MOVES, Registry, Standing
from proxy.dataplane.relay import Link
from proxy.dataplane.seats import Seats
from proxy.errors import ConnectFailed, PauseExpired, ProxyError, TooManyConnections
from tests.kit.waiting import until

ALICE = Startup("alice", "shop")
ALICE_UTC = Startup("alice", "shop", (("timezone", "UTC"),))


@dataclass
class Engine:
    """Opens backends, remembers the far ends, and can be made to refuse."""

    refuses: bool = False
    opened: list[tuple[Backend, socket.socket]] = field(default_factory=list)

    async def open_one(self, startup: Startup) -> Backend:
        await asyncio.sleep(0)
        if self.refuses:
            raise ConnectFailed("engine blue is down")
        near, far = socket.socketpair()
        near.setblocking(False)
        link = Link(asyncio.get_running_loop(), near.detach())
        backend = Backend(postgres.WIRE, Reach("blue", "127.0.0.1:1"), startup, link, BackendFacts("18", process_id=7))
        self.opened.append((backend, far))
        return backend

    def close(self) -> None:
        for backend, far in self.opened:
            backend.close()
            far.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def pool_of(engine: Engine, size_max: int = 2, **rules: float) -> Pool:
    return Pool(
        ("blue", "shop", "alice"),
        rules=PoolRules(size=size_max, wait_timeout_s=1.0, **rules),  # type: ignore[arg-type]  # rules are numbers
        seats=Seats(None, 0, 1),
        open_one=engine.open_one,
    )


class Asked:
    """One request to a pool and its outcome."""

    def __init__(self, pool: Pool, startup: Startup = ALICE, deadline_ns: int | None = None) -> None:
        self.backend: Backend | None = None
        self.error: ProxyError | None = None
        self.waiter = Waiter(startup, self._granted, self._refused, deadline_ns or time.monotonic_ns() + 10**10)
        pool.request(self.waiter)

    def _granted(self, backend: Backend) -> None:
        assert self.backend is None, "granted twice"
        self.backend = backend

    def _refused(self, error: ProxyError) -> None:
        self.error = error

    async def answer(self) -> Backend:
        await until(
            lambda: not (self.backend is None and self.error is None), "self.backend is None and self.error is None"
        )
        assert self.backend is not None, self.error
        return self.backend


async def test_a_backend_that_was_given_back_is_lent_again(engine: Engine) -> None:
    pool = pool_of(engine)
    backend = await Asked(pool).answer()
    pool.give_back(backend)
    assert await Asked(pool).answer() is backend
    assert (pool.idle, pool.in_use, pool.waiting) == (0, 1, 0)


async def test_a_backend_that_is_looked_at_stays_idle_unless_the_server_has_closed_it(engine: Engine) -> None:
    pool = pool_of(engine)
    backend = await Asked(pool).answer()
    pool.give_back(backend)
    shelf = pool.shelf(ALICE)
    assert pool.look_at(shelf) is backend
    assert (pool.idle, pool.in_use) == (1, 0)
    engine.opened[0][1].close()
    await until(lambda: backend.is_lost, "backend.is_lost")
    assert pool.look_at(shelf) is None
    assert pool.size == 0


async def test_no_more_than_size_max_are_opened_and_waiters_are_served_in_order(engine: Engine) -> None:
    pool = pool_of(engine, size_max=2)
    first, second = await Asked(pool).answer(), await Asked(pool).answer()
    third, fourth = Asked(pool), Asked(pool)
    await asyncio.sleep(0)
    assert pool.waiting == 2
    pool.give_back(first)
    assert third.backend is first
    assert fourth.backend is None
    pool.give_back(second)
    assert fourth.backend is second
    assert len(engine.opened) == 2


async def test_an_idle_backend_of_another_startup_makes_room(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1)
    backend = await Asked(pool, ALICE).answer()
    pool.give_back(backend)
    other = await Asked(pool, ALICE_UTC).answer()
    assert other.startup == ALICE_UTC
    assert backend.is_lost
    assert pool.size == 1


async def test_a_waiter_of_another_startup_gets_the_room_of_what_comes_back(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1)
    backend = await Asked(pool, ALICE).answer()
    asked = Asked(pool, ALICE_UTC)
    pool.give_back(backend)
    assert (await asked.answer()).startup == ALICE_UTC
    assert backend.is_lost


async def test_who_waits_too_long_is_told_that_the_pool_is_full(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1)
    await Asked(pool).answer()
    late = Asked(pool, deadline_ns=1)
    pool.tick(2)
    assert isinstance(late.error, TooManyConnections)
    assert late.error.sqlstate == "53300"
    assert "pool_size" in late.error.hint


async def test_an_engine_that_is_down_refuses_who_waits_and_frees_the_room(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1)
    engine.refuses = True
    asked = Asked(pool)
    await until(lambda: asked.error is not None, "asked.error is None")
    assert isinstance(asked.error, ConnectFailed)
    engine.refuses = False
    await Asked(pool).answer()


async def test_a_backend_under_cancellation_is_not_lent_to_another_session(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1)
    backend = await Asked(pool).answer()
    backend.cancels += 1
    pool.give_back(backend)
    asked = Asked(pool)
    assert asked.backend is None
    backend.cancel_ended()
    pool.cancel_done(backend)
    assert asked.backend is backend


async def test_a_backend_the_server_closed_is_not_lent(engine: Engine) -> None:
    pool = pool_of(engine)
    backend = await Asked(pool).answer()
    pool.give_back(backend)
    engine.opened[0][1].close()
    await until(lambda: not (pool.idle), "pool.idle")
    assert await Asked(pool).answer() is not backend


async def test_after_a_loss_the_others_are_lent_when_they_have_said_that_they_live(engine: Engine) -> None:
    """When a server goes its connections end one after another. Nothing is opened in their place meanwhile."""
    pool = Pool(
        ("blue", "shop", "alice"),
        rules=PoolRules(size=9, wait_timeout_s=1.0),
        seats=Seats(None, 0, 1),
        open_one=engine.open_one,
        ping=lambda backend: postgres.WIRE.check(backend.startup, ""),
        on_loss=lambda name: pool.suspect(),
    )
    for backend in [await Asked(pool).answer() for _ in range(3)]:
        pool.give_back(backend)
    lost, dying, well = (far for _, far in engine.opened)
    lost.close()
    await until(lambda: pool.checking == 2, "the others are asked")
    asked = Asked(pool)
    assert (dying.recv(99), well.recv(99)) == (b"S\0\0\0\x04", b"S\0\0\0\x04")
    dying.close()
    await until(lambda: pool.size == 1, "the second loss")
    assert asked.backend is None
    well.send(b"Z\0\0\0\x05I")
    assert await asked.answer() is engine.opened[2][0]
    assert len(engine.opened) == 3


async def test_a_withdrawn_waiter_is_not_granted(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1)
    backend = await Asked(pool).answer()
    asked = Asked(pool)
    pool.withdraw_all()
    pool.give_back(backend)
    assert asked.backend is None
    assert pool.idle == 1


async def test_a_pool_that_opens_no_more_lends_what_comes_back_and_opens_again_when_told(engine: Engine) -> None:
    pool = pool_of(engine, size_max=3)
    backend = await Asked(pool).answer()
    under_way = Asked(pool)
    pool.stop_opening()
    late = Asked(pool)
    await until(
        lambda: len(engine.opened) == 2 and engine.opened[1][0].is_lost, "the login that was under way is thrown away"
    )
    assert (under_way.backend, late.backend) == (None, None)
    pool.give_back(backend)
    assert under_way.backend is backend
    pool.go_on()
    await late.answer()


async def test_the_demand_counts_lent_and_idle_by_startup(engine: Engine) -> None:
    pool = pool_of(engine, size_max=3)
    await Asked(pool, ALICE).answer()
    pool.give_back(await Asked(pool, ALICE_UTC).answer())
    assert pool.demand() == {ALICE: 1, ALICE_UTC: 1}


async def test_a_closed_pool_closes_what_comes_back_and_refuses_who_asks(engine: Engine) -> None:
    pool = pool_of(engine)
    backend = await Asked(pool).answer()
    pool.close()
    pool.give_back(backend)
    assert backend.is_lost
    assert Asked(pool).error is not None


async def test_a_failed_login_is_not_tried_again_at_once(engine: Engine) -> None:
    """Until a switch, which forgives.

    field-notes: Login failure back-off in front of clients
    """
    pool = pool_of(engine, login_retry_s=60.0)
    engine.refuses = True
    first = Asked(pool)
    await until(lambda: first.error is not None, "the engine refused")
    engine.refuses = False
    assert isinstance(Asked(pool).error, ConnectFailed)
    pool.forgive()
    await Asked(pool).answer()


async def test_the_reserve_is_for_those_who_have_waited(engine: Engine) -> None:
    pool = pool_of(engine, size_max=1, reserve_size=1, reserve_after_s=30.0)
    await Asked(pool).answer()
    late = Asked(pool)
    pool.tick(time.monotonic_ns())
    assert late.backend is None
    late.waiter.since_ns -= 31 * 10**9
    pool.tick(time.monotonic_ns())
    await late.answer()
    third = Asked(pool)
    third.waiter.since_ns -= 31 * 10**9
    pool.tick(time.monotonic_ns())
    assert pool.size == 2


async def test_an_idle_backend_is_closed_at_the_end_of_its_life_and_a_lent_one_is_not(engine: Engine) -> None:
    pool = pool_of(engine, lifetime_s=100.0)
    lent, idle = await Asked(pool).answer(), await Asked(pool).answer()
    pool.give_back(idle)
    pool.keep(time.monotonic_ns() + 99 * 10**9)
    assert not idle.is_lost
    pool.keep(time.monotonic_ns() + 101 * 10**9)
    assert idle.is_lost
    assert not lent.is_lost
    assert pool.size == 1


async def test_a_pool_keeps_its_least_number_of_backends(engine: Engine) -> None:
    pool = pool_of(engine, size_min=2, idle_timeout_s=10.0, size_max=5)
    backend = await Asked(pool).answer()
    pool.give_back(backend)
    pool.keep(time.monotonic_ns() + 11 * 10**9)
    assert not backend.is_lost
    await until(lambda: pool.idle == 2, "a second one was opened")
    pool.keep(time.monotonic_ns())
    assert pool.size == 2


async def test_limits_of_a_database_and_of_a_user_hold_over_pools(engine: Engine) -> None:
    seats = Seats(None, 0, 1)
    rules = PoolRules(size=5, of_database=2, of_user=1)
    pools = [
        Pool(("blue", database, user), rules=rules, seats=seats, open_one=engine.open_one)
        for database, user in (("shop", "alice"), ("shop", "bob"), ("shop", "carol"), ("bank", "alice"))
    ]
    backends = [await Asked(pool).answer() for pool in pools[:2]]
    third, fourth = Asked(pools[2]), Asked(pools[3])
    await asyncio.sleep(0)
    assert len(engine.opened) == 2
    # An idle backend of another pool makes room.
    pools[0].give_back(backends[0])
    for _ in range(2):
        for pool in pools:
            pool.tick(time.monotonic_ns())
    assert backends[0].is_lost
    await third.answer()
    await fourth.answer()
    assert pools[1].in_use == 1


class _Known:
    standing = Standing.ENDED


@pytest.mark.parametrize("before", Standing)
@pytest.mark.parametrize("after", Standing)
def test_a_standing_changes_only_as_the_table_says(before: Standing, after: Standing) -> None:
    registry = Registry()
    session = _Known()
    registry.add(session)  # type: ignore[arg-type]
    path = {
        Standing.ARRIVING: [],
        Standing.SERVING: [Standing.SERVING],
        Standing.DRAINING: [Standing.SERVING, Standing.DRAINING],
        Standing.HELD: [Standing.SERVING, Standing.HELD],
        Standing.ENDED: [Standing.ENDED],
    }[before]
    for step in path:
        registry.move(session, step)  # type: ignore[arg-type]
    if after in MOVES[before]:
        registry.move(session, after)  # type: ignore[arg-type]
        assert session.standing is after
        assert registry.count(after) == (after is not Standing.ENDED)
    else:
        with pytest.raises(AssertionError):
            registry.move(session, after)  # type: ignore[arg-type]


# --- standing still -----------------------------------------------------------------------------------------------


async def test_a_paused_pool_closes_what_is_free_and_what_comes_back_and_lets_clients_wait(engine: Engine) -> None:
    pool = pool_of(engine, size_max=3)
    lent, free = await Asked(pool).answer(), await Asked(pool).answer()
    pool.give_back(free)
    pool.pause()
    assert free.is_lost
    assert not lent.is_lost
    assert pool.size == pool.retired == 1
    waiting = Asked(pool)
    pool.tick(time.monotonic_ns())
    pool.give_back(lent)
    assert lent.is_lost
    assert pool.size == 0
    assert waiting.backend is None
    pool.unpause()
    assert (await waiting.answer()) not in (lent, free)


async def test_a_backend_whose_login_a_pause_met_serves_nobody(engine: Engine) -> None:
    pool = pool_of(engine)
    waiting = Asked(pool)
    pool.pause()
    await until(lambda: len(engine.opened) == 1 and pool.size == 0, "the login ends, and its backend")
    assert waiting.backend is None
    pool.unpause()
    await waiting.answer()


async def test_who_waits_too_long_for_a_paused_database_is_told_so(engine: Engine) -> None:
    pool = pool_of(engine)
    pool.pause()
    waiting = Asked(pool, deadline_ns=time.monotonic_ns())
    pool.tick(time.monotonic_ns())
    assert isinstance(waiting.error, PauseExpired)
    assert waiting.error.sqlstate == "57P03"


async def test_what_a_switch_prepares_in_a_paused_pool_is_not_kept(engine: Engine) -> None:
    pool = pool_of(engine)
    pool.pause()
    backend = await engine.open_one(ALICE)
    pool.shelve(backend)
    assert backend.is_lost
    assert pool.size == 0


async def test_a_retired_backend_ends_with_its_session_and_another_is_opened_at_once(engine: Engine) -> None:
    pool = pool_of(engine, size_max=2)
    old = await Asked(pool).answer()
    pool.retire()
    assert pool.retired == 1
    new = await Asked(pool).answer()
    assert new is not old
    pool.give_back(old)
    pool.give_back(new)
    assert old.is_lost
    assert (pool.idle, pool.retired) == (1, 0)


async def test_a_retired_backend_is_not_reset_before_it_is_closed(engine: Engine) -> None:
    pool = pool_of(engine)
    old = await Asked(pool).answer()
    pool.retire()
    await pool.give_back_used(old)
    assert old.is_lost
    far = engine.opened[0][1]
    assert b"DISCARD" not in far.recv(1_000)
