"""History: what served when, for how long, and when each version was in production."""

import asyncio
import random
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from services.agents import queries
from services.agents.queries import DeploymentView
from services.domain.state import AgentSnapshot, serving
from services.promotion.history import PERIODS_SHOWN, Change, NothingServedYet, history, served_at
from services.promotion.promote import promote
from services.storage.pages import Page
from tests.integration.services.world import AMY, NAME, World, settled
from tests.support.factories import a_build, incoming

MICROSECOND = timedelta(microseconds=1)
MOMENTS = 10_000
STEPS = 40

Moment = tuple[datetime, str | None, str | None]  # from then on: a deployment, an address


async def ledger(world: World, name: str = NAME) -> list[Change]:
    """The whole ledger, newest first."""
    agent_id = await world.agent_id(name)
    return await world.do(lambda session: history(session, agent_id, limit=1000))


async def views(world: World, **page: Any) -> dict[str, DeploymentView]:
    """The agent's versions with their periods in production."""
    agent_id = await world.agent_id()
    found = await world.do(lambda session: queries.list_deployments(session, agent_id, Page(limit=100, **page)))
    return {view.deployment.id: view for view in found}


async def periods(world: World, deployment_id: str) -> list[tuple[int, datetime, datetime | None]]:
    """The periods of this version in production, newest first."""
    agent_id = await world.agent_id()
    view = await world.do(lambda session: queries.get_deployment(session, agent_id, deployment_id))
    return [(period.generation, period.since, period.until) for period in view.production_periods]


async def a_life(world: World, rng: random.Random) -> list[Moment]:
    """An agent with promotes, a rollback, a legacy take-over and a deletion; returns what each call reported."""
    versions = [f"v{number}" for number in range(5)]
    await world.register(a_build())
    states: list[AgentSnapshot] = []
    for version in versions:
        states += [each.state for each in await world.decide(incoming(deployment_id=version)) if each.state]
    for number in range(STEPS):
        kind = rng.choice(["promote", "promote", "promote", "roll back", "legacy"])
        if kind == "promote":
            states.append(await world.promote(rng.choice(versions)))
        elif kind == "roll back":
            result = await settled(world.roll_back())
            states += [result] if isinstance(result, AgentSnapshot) else []
        else:
            (decided,) = await world.decide(incoming(acp_url=f"http://legacy-{number}"))
            states += [decided.state] if decided.state else []
    states.append(await world.delete_agent())
    moments: dict[int, Moment] = {}
    for state in states:
        serves = serving(state)
        if state.last_cutover_at is not None and state.agent.generation not in moments:
            serving_id, url = (serves.deployment_id, serves.acp_url) if serves else (None, None)
            moments[state.agent.generation] = (state.last_cutover_at, serving_id, url)
    return [moments[generation] for generation in sorted(moments)]


async def test_ten_thousand_times_have_the_answer_of_a_model(world: World) -> None:
    """`at` returns what the calls reported to serve then, to the microsecond; before the first change, nothing."""
    rng = random.Random()  # noqa: S311
    model = await a_life(world, rng)
    agent_id, starts = await world.agent_id(), [at for at, _, _ in model]
    first, last = starts[0], starts[-1]
    edges = [at + offset * MICROSECOND for at in starts for offset in (-1, 0, 1)]
    span = (last - first) / timedelta(microseconds=1)
    anywhere = [first + timedelta(microseconds=rng.uniform(-0.05, 1.05) * span) for _ in range(MOMENTS - len(edges))]

    async def compare(moments: list[datetime]) -> int:
        before_the_first = 0
        async with world.uncommitted() as session:
            for at in moments:
                held = bisect_right(starts, at)
                if held == 0:
                    before_the_first += 1
                    with pytest.raises(NothingServedYet):
                        await served_at(session, agent_id, at)
                    continue
                found = await served_at(session, agent_id, at)
                said = (found.promotion.at, found.promotion.to_deployment_id, found.promotion.to_acp_url)
                assert said == model[held - 1]
                assert found.until == (starts[held] if held < len(starts) else None)
        return before_the_first

    assert await compare(edges) == 1
    assert await compare(anywhere) > 0
    assert len(starts) > STEPS / 2


async def test_each_row_has_its_duration(world: World) -> None:
    """Until the next row, on every page; the newest row has no end."""
    await world.two_versions()
    for number in range(4):
        await world.promote(f"{NAME}.v{2 - number % 2}")
    agent_id, rows = await world.agent_id(), await ledger(world)
    assert (rows[0].until, rows[0].lasted) == (None, None)
    for newer, older in pairwise(rows):
        assert older.until == newer.promotion.at
        assert older.lasted == newer.promotion.at - older.promotion.at
    page = await world.do(lambda session: history(session, agent_id, limit=2, offset=2))
    assert [(row.promotion.generation, row.until) for row in page] == [
        (row.promotion.generation, row.until) for row in rows[2:4]
    ]


async def test_a_promote_that_waited_for_the_lock_is_later_in_the_ledger(world: World) -> None:
    """Its time is that of its turn, not that of its call, so each time has exactly one answer."""
    await world.two_versions()
    agent_id = await world.agent_id()
    async with world.uncommitted() as first:
        await promote(first, agent_id, f"{NAME}.v2", AMY)
        called_at = datetime.now(UTC)
        waiting = asyncio.create_task(world.promote(f"{NAME}.v1"))
        await world.until_blocked()
        let_go_at = datetime.now(UTC)
    await waiting
    newest, before, _ = await ledger(world)
    assert (newest.promotion.to_deployment_id, before.promotion.to_deployment_id) == (f"{NAME}.v1", f"{NAME}.v2")
    assert newest.promotion.at > let_go_at > called_at > before.promotion.at
    assert before.until == newest.promotion.at


async def test_before_the_first_change_the_error_names_its_time(world: World) -> None:
    """404 with the time of the first change, or a message that there was none."""
    await world.register(a_build())
    agent_id, now = await world.agent_id(), datetime.now(UTC)
    with pytest.raises(NothingServedYet, match="nothing has served it yet"):
        await world.do(lambda session: served_at(session, agent_id, now))
    await world.arrive(deployment_id="v1")
    (row,) = await ledger(world)
    with pytest.raises(NothingServedYet, match=f"its first generation began at {row.promotion.at:%Y-%m-%dT%H:%M:%S}"):
        await world.do(lambda session: served_at(session, agent_id, now))


async def test_a_version_has_its_periods_in_production(world: World) -> None:
    """Each period with its end, newest first; none for a version that never served; alone and in a list alike."""
    await world.two_versions()
    await world.arrive(deployment_id="never")
    for number in range(3):
        await world.promote(f"{NAME}.v{2 - number % 2}")
    rows = await ledger(world)
    expected = {
        version: [(row.promotion.generation, row.promotion.at, row.until) for row in rows if to(row) == version]
        for version in (f"{NAME}.v1", f"{NAME}.v2", "never")
    }
    assert [len(each) for each in expected.values()] == [2, 2, 0]
    assert {version: await periods(world, version) for version in expected} == expected
    listed = await views(world)
    assert {
        version: [(period.generation, period.since, period.until) for period in view.production_periods]
        for version, view in listed.items()
    } == expected


async def test_the_number_of_periods_is_bounded(world: World) -> None:
    """At most the last ten, however often a version came back; the ledger has all."""
    await world.two_versions()
    for number in range(2 * PERIODS_SHOWN + 2):
        await world.promote(f"{NAME}.v{2 - number % 2}")
    rows = [row.promotion.generation for row in await ledger(world) if to(row) == f"{NAME}.v1"]
    assert len(rows) > PERIODS_SHOWN
    assert [generation for generation, _, _ in await periods(world, f"{NAME}.v1")] == rows[:PERIODS_SHOWN]


async def test_a_take_over_and_a_deletion_end_a_period(world: World) -> None:
    """A legacy take-over ends a period as a promote does, and so does a deletion."""
    await world.arrive(deployment_id="v1")
    await world.arrive(acp_url="http://legacy")
    [(generation, _, until)] = await periods(world, "v1")
    taken_over = (await ledger(world))[0].promotion
    assert (generation, until, taken_over.cause) == (1, taken_over.at, "legacy")
    await world.promote("v1")
    await world.delete_agent()
    assert [until is None for _, _, until in await periods(world, "v1")] == [False, False]


def to(row: Change) -> str | None:
    """The version that served."""
    return row.promotion.to_deployment_id
