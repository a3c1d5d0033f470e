"""Claims and verdicts: each due deployment has one claimer, and a batch of verdicts has the effect of single ones."""

from datetime import timedelta

from sqlalchemy import text

from services.domain.health_policy import ProbeResult, ProbeTarget
from services.health.probes import claim, give_verdict, give_verdicts
from services.registration.batch import Terms, register_batch
from services.settings import Settings
from tests.integration.services.world import World
from tests.support.factories import incoming

# One failure is enough, so each verdict has an effect.
SETTINGS = Settings(probe_threshold=1, probe_interval=timedelta(minutes=1))
REFUSED = "cannot connect (Connection refused)"
_LOCK = text("SELECT 1 FROM agents WHERE name = 'busy' FOR NO KEY UPDATE")


async def claimed(world: World, limit: int = 100) -> list[ProbeTarget]:
    """Claim what is due."""
    return await world.do(lambda session: claim(session, SETTINGS, limit))


async def test_a_claimed_deployment_is_not_due_before_its_interval_ends(world: World) -> None:
    """Concurrent claims share the due deployments; a claimed one is due again only after a new announcement."""
    await world.register(*(incoming(deployment_id=f"v{number}") for number in range(5)))
    async with world.uncommitted() as session:
        first = await claim(session, SETTINGS, 2)
        second = await claimed(world)
    assert sorted(each.id for each in (*first, *second)) == ["v0", "v1", "v2", "v3", "v4"]
    assert len(first) == 2
    assert await claimed(world) == []
    await world.arrive(deployment_id="v3", acp_url="http://new")
    assert [(each.id, each.url) for each in await claimed(world)] == [("v3", "http://new/healthz")]


async def test_a_deployment_that_cannot_be_probed_is_never_due(world: World) -> None:
    """Deleted deployments, those without an address, and those that failed before they were ever Ready."""
    await world.register(*(incoming(deployment_id=name) for name in ("v1", "gone", "never")))
    await world.create(id="unannounced")
    await world.delete("gone")
    await world.fail("never")
    await world.do(lambda session: session.execute(text("UPDATE deployments SET ready_at = NULL WHERE id = 'never'")))
    assert [each.id for each in await claimed(world)] == ["v1"]
    restored = text("UPDATE deployments SET ready_at = first_registered_at WHERE id = 'never'")
    await world.do(lambda session: session.execute(restored))


async def test_a_batch_of_verdicts_equals_single_verdicts(world: World) -> None:
    """Of several agents, and several of one agent: the same states, and the events of each in order."""
    for name in ("one", "two", "alone"):
        await world.two_versions(name)
    targets = sorted(await claimed(world), key=lambda each: each.id)
    results = [ProbeResult(each, REFUSED) for each in targets if not each.id.startswith("alone")]
    given = await world.do(lambda session: give_verdicts(session, results))
    for target in targets:
        if target.id.startswith("alone"):
            await world.do(lambda session, target=target: give_verdict(session, ProbeResult(target, REFUSED)))  # type: ignore[misc]
    expected = await world.event_types("alone")
    assert expected[-2:] == ["deployment.failed", "deployment.failed"]
    for name in ("one", "two"):
        assert await world.event_types(name) == expected
        assert (await world.agent(name)).status == "Failed"
    assert [len(state.events) for state in given if state is not None] == [1, 1, 1, 1]


async def test_verdicts_do_not_wait_for_locks(world: World) -> None:
    """The result for a locked agent is left to a transaction of its own; the others are applied."""
    for name in ("busy", "free"):
        await world.register(incoming(name, deployment_id=name))
    results = [ProbeResult(each, REFUSED) for each in sorted(await claimed(world), key=lambda each: each.id)]
    async with world.uncommitted() as session:
        await session.execute(_LOCK)
        given = await world.do(lambda session: give_verdicts(session, results))
    assert [state is None for state in given] == [True, False]
    assert ((await world.agent("busy")).status, (await world.agent("free")).status) == ("Ready", "Failed")


async def test_of_two_first_answers_in_one_batch_one_goes_to_production(world: World) -> None:
    """Each decision sees the effect of the one before it."""
    messages = [incoming(deployment_id=name) for name in ("v1", "v2")]
    await world.do(lambda session: register_batch(session, messages, terms=Terms(requires_probe=True)))
    assert await world.production() is None
    results = [ProbeResult(each, None) for each in sorted(await claimed(world), key=lambda each: each.id)]
    await world.do(lambda session: give_verdicts(session, results))
    assert await world.causes() == [("first", "v1")]
    assert (await world.deployment("v2")).status == "Ready"
