"""G95: rollbacks that share a commit write what they would write one by one under the lock, or nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.caller import Caller
from services.domain.state import AgentSnapshot
from services.errors import (
    AgentDeletedError,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentNotReady,
    GenerationMismatch,
    NothingToRollBackTo,
    PodiumError,
    TargetMoved,
    Unavailable,
)
from services.promotion.rollback import Plan, plan_rollback, roll_back
from services.promotion.rollback_targets import NEAR, Target
from services.promotion.together import CutoversTogether, PlanRollback, Promote, Promoted, RollBack, RolledBack
from services.settings import Settings
from tests.integration.services.test_draining import begin
from tests.integration.services.test_promotes_together import (
    END,
    LOCKS,
    TABLES,
    TRACEPARENT,
    about,
    in_time,
    opened,
    pictured,
)
from tests.integration.services.test_promotes_together import together as together  # noqa: PLC0414 - a fixture
from tests.integration.services.world import NAME, World, settled
from tests.support.databases import empty
from tests.support.instances import Instances

AMY = Caller(actor="amy", reason="It is rude.", traceparent=TRACEPARENT, request_id="r-1", on_behalf_of="bob")
Way = Callable[[str, str | None, Caller, Sequence[Target] | None], Awaitable[object]]


async def history(world: World, way: Way) -> list[object]:
    """Rollbacks of all kinds, each in this way, between other changes; returns what the callers got."""
    await world.arrive("other", deployment_id="foreign")
    await world.arrive(acp_url="http://legacy:1", docker_image="bot:legacy")
    for number in range(1, 6):
        await world.arrive(deployment_id=f"v{number}", acp_url=f"http://v{number}:1", docker_image=f"bot:{number}")
    await world.create(id="pending")
    await world.arrive(deployment_id="gone")
    await world.delete("gone")
    got: list[object] = []

    async def back(
        to: str | None = None, name: str = NAME, probed: Sequence[Target] | None = None, **caller: Any
    ) -> None:
        got.append(await way(name, to, replace(AMY, **caller), probed))

    for other in ("legacy", None, "v1", "nowhere"):
        await back(other, "other")
    await back()  # nothing to go back to
    for number in (1, 2, 3, 4):
        await world.promote(f"v{number}")
    await begin(world, b"first", "v4")
    for to in (None, "v2", "legacy", "pending", "gone", "foreign", "nowhere"):
        await back(to, if_generation=77)
    for to in ("pending", "gone", "foreign", "nowhere"):
        await back(to)
    elsewhere = Target(deployment_id="v3", acp_url="http://else", health_path="/", registered_at=None, restored=None)
    await back(probed=[elsewhere])
    await back("v3", probed=[])  # it served when it was planned
    await back(if_generation=5)  # to v3
    await back()  # back twice: to v2
    await world.promote("v4")
    await back()  # of a rollback: to v2 again
    await back("v5")  # never served
    await back("v5", if_generation=1)  # serves already
    await back("legacy")
    await back("legacy")
    await back()  # from the legacy address
    await world.fail("v5")
    await world.fail("v2")
    await world.delete("v1")
    await back()  # over Failed and deleted ones
    await back("v2")
    await world.arrive(deployment_id="v2", acp_url="http://again:1")
    await back()
    await Instances(world.sessions).add("v3", {"a": "http://a:1", "b": "http://b:1"})
    await world.fail("v2")
    await back("v3")
    await back("legacy")
    await world.delete_agent()
    for to in (None, "legacy", "v3", "nowhere"):
        await back(to)
    return got


def answered(state: AgentSnapshot) -> object:
    """What the caller's answer is made of, without ids and times."""
    agent = state.agent
    shown = (agent.generation, agent.event_seq, agent.status, agent.production_deployment_id, agent.auto_promote_paused)
    return shown, tuple(event.type for event in state.events), tuple(row.restored for row in state.ledger)


async def test_they_write_the_rows_of_rollbacks_under_the_lock(
    world: World, together: CutoversTogether, engine: AsyncEngine
) -> None:
    """G95: column by column in every table, after the same changes; callers get the same answers, errors and plans."""

    async def under_the_lock(name: str, to: str | None, caller: Caller, probed: Sequence[Target] | None) -> object:
        agent_id = await world.agent_id(name)
        plan = await settled(world.do(lambda session: plan_rollback(session, agent_id, caller, to=to)))
        found = await settled(world.do(lambda session: roll_back(session, agent_id, caller, to=to, probed=probed)))
        return of(plan), type(found) if isinstance(found, PodiumError) else answered(found)

    async def with_others(name: str, to: str | None, caller: Caller, probed: Sequence[Target] | None) -> object:
        agent_id = await world.agent_id(name)
        plan, made = await together.make([PlanRollback(agent_id, to, caller), RollBack(agent_id, to, caller, probed)])
        if isinstance(made, PodiumError):
            return of(plan), type(made)
        assert isinstance(made, RolledBack)
        return of(plan), answered(made.state)

    def of(plan: object) -> object:
        if isinstance(plan, PodiumError):
            return type(plan), plan.message
        assert isinstance(plan, Plan)
        return plan.target and replace(plan.target, registered_at=None)

    expected = await history(world, under_the_lock), await pictured(world)
    await empty(engine)
    found = await history(world, with_others), await pictured(world)
    assert found[0] == expected[0]
    assert {each[1] for each in found[0]} >= {  # type: ignore[index]
        AgentDeletedError,
        DeploymentDeletedError,
        DeploymentNotFound,
        DeploymentNotReady,
        GenerationMismatch,
        NothingToRollBackTo,
        TargetMoved,
    }
    for table in TABLES:
        assert found[1][table], table
        for row, other in zip(found[1][table], expected[1][table], strict=True):
            assert row == other, table
    row = next(row for row in found[1]["promotions"] if row["cause"] == "rollback")
    assert (row["actor"], row["reason"], row["request_id"], row["on_behalf_of"]) == (
        "amy",
        "It is rude.",
        "r-1",
        "bob",
    )


async def three_versions(world: World) -> None:
    """v1, v2 and v3 served in turn; v2 failed, so a rollback goes to v1."""
    for number in range(1, 4):
        await world.arrive(deployment_id=f"v{number}", acp_url=f"http://v{number}:1")
    await world.promote("v2")
    await world.promote("v3")
    await world.fail("v2")
    await world.two_versions("other")
    await world.promote("other.v2", "other")


_QUIETLY = text("UPDATE deployments SET status = 'Ready' WHERE id = 'v2'")

# Each is committed after the read and before the write.
CHANGES: dict[str, Callable[[World], Awaitable[object]]] = {
    "one that was passed over becomes Ready": lambda world: world.arrive(deployment_id="v2"),
    "one that was passed over becomes Ready without an event": lambda world: world.do(
        lambda session: session.execute(_QUIETLY)
    ),
    "the target fails": lambda world: world.fail("v1"),
    "the target is deleted": lambda world: world.delete("v1"),
    "the target announces a new address": lambda world: world.arrive(deployment_id="v1", acp_url="http://new"),
    "production announces a new address": lambda world: world.arrive(deployment_id="v3", acp_url="http://new"),
    "production fails": lambda world: world.fail("v3"),
    "another promote": lambda world: world.promote("v1"),
    "another rollback": lambda world: world.roll_back(),
    "a legacy pod registers": lambda world: world.arrive(acp_url="http://legacy"),
    "the agent is deleted": lambda world: world.delete_agent(),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_nothing_is_written_if_something_has_changed(
    world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """G95: neither a rollback nor a refusal, however the read and the change come together; others pass."""
    await three_versions(world)
    agent_id, other_id = await world.agent_id(), await world.agent_id("other")
    after: list[Any] = []
    fetch = together._connection.fetch

    async def late(number: int, *values: object) -> Any:
        if number == 1:
            await CHANGES[name](world)
            after.append(await about(world, NAME))
            values = in_time(values)
        return await fetch(number, *values)

    monkeypatch.setattr(together._connection, "fetch", late)
    refused, unrefused = RollBack(agent_id, None, replace(AMY, if_generation=77)), RollBack(agent_id, None, AMY)
    made = await together.make([refused, unrefused, RollBack(other_id, None, AMY)])
    assert [type(each) for each in made] == [type(None), type(None), RolledBack]
    assert await about(world, NAME) == after[0]
    assert await world.production("other") == "other.v1"


async def test_promotes_and_rollbacks_of_different_agents_share_a_statement(
    world: World, together: CutoversTogether
) -> None:
    """G95: one transaction for all; what follows a rollback of the same agent is decided on what that left."""
    await three_versions(world)
    agent_id, other_id = await world.agent_id(), await world.agent_id("other")
    made = await together.make(
        [
            RollBack(agent_id, None, replace(AMY, if_generation=3)),
            Promote(other_id, "other.v1", AMY),
            Promote(agent_id, "v3", replace(AMY, if_generation=4)),
            Promote(agent_id, "v1", replace(AMY, if_generation=4)),
        ]
    )
    assert [type(each) for each in made] == [RolledBack, Promoted, Promoted, GenerationMismatch]
    assert (await world.causes())[-2:] == [("rollback", "v1"), ("manual", "v3")]
    same = text("SELECT count(DISTINCT xmin::text) FROM promotions WHERE actor = 'amy' AND request_id = 'r-1'")
    assert await world.do(lambda session: session.scalar(same)) == 1


async def test_a_rollback_after_another_change_is_left_to_the_lock(world: World, together: CutoversTogether) -> None:
    """G95: the ledger that was read does not have that change; nothing of the agent is written."""
    await three_versions(world)
    agent_id = await world.agent_id()
    before = await about(world, NAME)
    assert await together.make([Promote(agent_id, "v1", AMY), RollBack(agent_id, None, AMY)]) == [None, None]
    assert await about(world, NAME) == before


async def test_a_long_walk_is_left_to_the_lock(world: World, together: CutoversTogether) -> None:
    """G95: neighbours do not wait for it, and a target beyond it is not taken for none."""
    await world.two_versions()
    await world.arrive(deployment_id="old")
    await world.promote("old")
    for number in range(NEAR):
        await world.promote(f"{NAME}.v{1 + number % 2}")
    await world.fail(f"{NAME}.v1")
    await world.promote(f"{NAME}.v2")
    agent_id = await world.agent_id()
    assert await together.make([RollBack(agent_id, None, AMY)]) == [None]
    await world.roll_back()
    assert await world.production() == "old"


@pytest.mark.parametrize("name", LOCKS)
async def test_what_is_locked_is_left_at_once(world: World, together: CutoversTogether, name: str) -> None:
    """G95: without a wait; rollbacks of other agents pass."""
    for bot in (NAME, "other"):
        await world.two_versions(bot)
        await world.promote(f"{bot}.v2", bot)
    wanted = [RollBack(await world.agent_id(bot), None, AMY) for bot in (NAME, "other")]
    async with world.uncommitted() as session:
        await session.execute(text(LOCKS[name]))
        async with asyncio.timeout(2):
            made = await together.make(wanted)
    assert [type(each) for each in made] == [type(None), RolledBack]
    assert (await world.production(), await world.production("other")) == (f"{NAME}.v2", "other.v1")


async def test_a_lost_connection(world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch) -> None:
    """G95: lost after the statement was sent, the outcome is unknown: an error, and no second attempt."""
    await three_versions(world)
    wanted = [RollBack(await world.agent_id(), None, AMY)]
    fetch = together._connection.fetch
    sent = 0

    async def lost(number: int, *values: object) -> Any:
        nonlocal sent
        found = await fetch(number, *values)
        if number == 1:
            sent += 1
            await world.do(lambda session: session.execute(END))
            await fetch(0, [], [], [], [])
        return found

    with monkeypatch.context() as patched:
        patched.setattr(together._connection, "fetch", lost)
        with pytest.raises(Unavailable):
            await together.make(wanted)
    assert sent == 1
    assert [cause for cause, _ in await world.causes()].count("rollback") == 1
    [repeated] = await together.make([replace(wanted[0], caller=replace(AMY, if_generation=3))])
    assert isinstance(repeated, GenerationMismatch)


async def test_the_relay_is_woken_only_after_events(world: World, settings: Settings) -> None:
    """Once for each commit that wrote any; a plan writes nothing."""
    await three_versions(world)
    agent_id = await world.agent_id()
    events: list[None] = []
    async with opened(settings, events) as together:
        before = await about(world, NAME)
        await together.make([PlanRollback(agent_id, None, AMY), PlanRollback(agent_id, "v1", AMY)])
        assert await about(world, NAME) == before
        assert not events
        await together.make([RollBack(agent_id, None, AMY)])
        assert len(events) == 1


async def test_a_rollback_under_the_lock_waits_for_one_in_a_group(world: World, together: CutoversTogether) -> None:
    """G95: of many at once in both ways, each goes one step further back."""
    for number in range(1, 10):
        await world.arrive(deployment_id=f"v{number}")
        await world.promote(f"v{number}")
    agent_id = await world.agent_id()

    async def grouped() -> None:
        [made] = await together.make([RollBack(agent_id, None, AMY)])
        if made is None:
            await world.roll_back()

    for _ in range(4):
        await asyncio.gather(world.roll_back(), grouped())
    assert [to for cause, to in await world.causes() if cause == "rollback"] == [f"v{n}" for n in range(8, 0, -1)]
