import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.domain.caller import Caller
from services.errors import PodiumError
from tests.integration.services.world import NAME, World, settled
from tests.support.factories import ago, incoming

ROUNDS = 15


@pytest.mark.parametrize("deployments", ["one", "many"])
@pytest.mark.parametrize("agents", ["one", "many"])
async def test_concurrent_first_registrations(world: World, agents: str, deployments: str) -> None:
    """50 pods of new agents at once, in batches of 50 and of 1: none is refused, and each agent is promoted once."""
    names = [NAME] if agents == "one" else [f"bot-{number}" for number in range(5)]
    messages = [
        incoming(name, deployment_id=f"{name}.{number if deployments == 'many' else 0}", acp_url=f"http://h{number}")
        for number in range(50 // len(names))
        for name in names
    ]
    half = len(messages) // 2
    singles = [[message] for message in messages[:half]]
    batches = [messages[half:], list(reversed(messages)), *singles]
    with capture_logs() as logs:
        decided = await asyncio.gather(*[world.register(*batch) for batch in batches])
    assert {outcome for outcomes in decided for outcome in outcomes} <= {"Registered", "Duplicate", "Stale"}
    assert not [entry for entry in logs if "deadlock" in entry.get("cause", "")]
    contents = await world.contents()
    assert len(contents["agents"]) == len(names)
    assert len(contents["deployments"]) == (50 if deployments == "many" else len(names))
    for name in names:
        assert [cause for cause, _ in await world.causes(name)] == ["first"]
        assert (await world.event_types(name)).count("deployment.promoted") == 1


async def _rounds(world: World, left: Callable[[str], Awaitable[Any]], right: Callable[[str], Awaitable[Any]]) -> None:
    """Run both concurrently in many rounds, each with its own agent; the only errors are refusals."""
    names = [f"bot-{number}" for number in range(ROUNDS)]
    for name in names:
        await world.two_versions(name)
    for number, name in enumerate(names):
        pair = (left(name), right(name)) if number % 2 else (right(name), left(name))
        await asyncio.gather(*map(settled, pair))


async def test_promotes_and_registrations_meet_in_any_order(world: World) -> None:
    """G2: in any order, the promoted version serves, at its newest address."""

    async def re_register(name: str) -> None:
        await world.arrive(name, deployment_id=f"{name}.v1", acp_url="http://new")
        await world.arrive(name, deployment_id=f"{name}.v2", acp_url="http://new")

    await _rounds(world, lambda name: world.promote(f"{name}.v2", name), re_register)
    for number in range(ROUNDS):
        assert await world.production(f"bot-{number}") == f"bot-{number}.v2"
        assert (await world.deployment(f"bot-{number}.v2")).acp_url == "http://new"


async def test_promotes_and_deletions_meet_in_any_order(world: World) -> None:
    """G13: either the preview is deleted and the promote gets 410, or it serves and the deletion gets 409."""
    await _rounds(world, lambda name: world.promote(f"{name}.v2", name), lambda name: world.delete(f"{name}.v2", name))
    for number in range(ROUNDS):
        deleted = (await world.deployment(f"bot-{number}.v2")).expires_at is not None
        assert await world.production(f"bot-{number}") == f"bot-{number}.{'v1' if deleted else 'v2'}"


async def test_registrations_and_agent_deletions_meet_in_any_order(world: World) -> None:
    """G16: the new deployment is deleted with its agent, or came too late, or serves a new agent."""
    await _rounds(
        world,
        lambda name: world.arrive(name, deployment_id=f"{name}.v3", registered_at=ago(-20)),
        world.delete_agent,
    )
    rows = await world.inbox()
    assert {row.outcome for row in rows} == {"Registered"}


async def test_many_promotes_at_once_all_succeed(world: World) -> None:
    """G10: 60 promotes of 6 versions at once run one by one: generations without gaps, one event each."""
    await world.register(*[incoming(deployment_id=f"v{number}") for number in range(6)])
    await asyncio.gather(*[world.promote(f"v{number % 6}") for number in range(60)])
    assert (await world.event_types()).count("deployment.promoted") == (await world.agent()).generation


async def test_of_many_promotes_with_one_if_match_one_changes_anything(world: World) -> None:
    """G10: all promotes of the winner's target succeed; all others get 412."""
    await world.register(*[incoming(deployment_id=f"v{number}") for number in range(6)])
    looked_at = Caller(actor="amy", if_generation=1)
    targets = [f"v{number % 5 + 1}" for number in range(30)]
    answers = await asyncio.gather(*[settled(world.promote(target, caller=looked_at)) for target in targets])
    winner = await world.production()
    assert (await world.agent()).generation == 2
    for target, result in zip(targets, answers, strict=True):
        reason = result.reason if isinstance(result, PodiumError) else "ok"
        assert reason == ("ok" if target == winner else "generation-mismatch")
