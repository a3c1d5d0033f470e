import random
from dataclasses import dataclass, field

import pytest

from services.domain.caller import Caller
from services.errors import (
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentNotReady,
    GenerationMismatch,
    NothingToRollBackTo,
    PodiumError,
)
from tests.integration.services.world import AMY, World
from tests.support.factories import a_build, ago, incoming
from tests.support.reference_model.rollback_walk import LEGACY, Cutover, rollback_target
from tests.support.shuffle import FRESH_SEED

SEEDS = [1, 2, 3, FRESH_SEED]


async def served_in_turn(world: World, *versions: str) -> None:
    """These versions served one after another; the last one serves now."""
    await world.register(*[incoming(deployment_id=version) for version in versions])
    for version in versions[1:]:
        await world.promote(version)


async def test_a_rollback_goes_back_to_what_served_before(world: World) -> None:
    """G17: one more generation, with cause `rollback` and the generation that it restored."""
    await served_in_turn(world, "v1", "v2")
    state = await world.roll_back(caller=Caller(actor="amy", reason="Rude."))
    assert state.agent.production_deployment_id == "v1"
    last = (await world.ledger())[-1]
    assert (last.cause, last.restored, last.actor, last.reason) == ("rollback", 1, "amy", "Rude.")
    event = (await world.events())[-1]
    assert (event.type, event.payload["cause"]) == ("podium.deployment.promoted.v1", "rollback")


async def test_rolling_back_twice_goes_back_twice(world: World) -> None:
    """G17: a rollback row counts as the row that it restored, so the second rollback goes further back."""
    await served_in_turn(world, "v1", "v2", "v3")
    await world.roll_back()
    assert await world.production() == "v2"
    await world.roll_back()
    assert await world.production() == "v1"
    with pytest.raises(NothingToRollBackTo):
        await world.roll_back()


async def test_a_rollback_after_new_promotes_goes_back_to_what_served_before_them(world: World) -> None:
    """G17: v1 v2 v3, back (v2), v4, back (v2), back (v1): a version that was rolled back from is not a target."""
    await served_in_turn(world, "v1", "v2", "v3")
    await world.roll_back()
    await world.arrive(deployment_id="v4")
    await world.promote("v4")
    for expected in ("v2", "v1"):
        await world.roll_back()
        assert await world.production() == expected


async def test_a_rollback_skips_what_cannot_serve(world: World) -> None:
    """G17: deleted and Failed versions are skipped, and so is what serves now."""
    await served_in_turn(world, "v1", "v2", "v3", "v4")
    await world.delete("v3")
    await world.fail("v2")
    await world.roll_back()
    assert await world.production() == "v1"
    assert (await world.ledger())[-1].restored == 1


async def test_a_migrated_agent_can_return_to_its_legacy_address(world: World) -> None:
    """G17: by rollback; the current legacy address serves, and `demoted` reports it."""
    await world.arrive(acp_url="http://legacy", registered_at=ago(60))
    await world.arrive(deployment_id="v1")
    await world.promote("v1")
    assert await world.arrive(acp_url="http://today", registered_at=ago(30)) == "Shadowed"
    state = await world.roll_back()
    assert state.agent.production_deployment_id is None
    last = (await world.ledger())[-1]
    assert (last.to_acp_url, last.restored) == ("http://today", 1)
    event = (await world.events())[-1]
    assert (event.type, event.payload["cause"]) == ("podium.deployment.demoted.v1", "rollback")
    assert event.payload["acp_url"] == "http://today"
    with pytest.raises(NothingToRollBackTo):
        await world.roll_back()


async def test_a_rollback_to_legacy_by_name(world: World) -> None:
    """G17: `legacy` goes there directly, also over several generations; if it serves already, nothing changes."""
    await world.arrive(acp_url="http://legacy")
    await served_in_turn(world, "v1", "v2")
    await world.promote("v1")
    await world.roll_back(to="legacy")
    assert await world.causes() == [
        ("legacy", "legacy"),
        ("manual", "v2"),
        ("manual", "v1"),
        ("rollback", "legacy"),
    ]
    before = await world.contents(without=frozenset({"agents"}))
    await world.roll_back(to="legacy", caller=Caller(actor="amy", if_generation=99))
    assert await world.contents(without=frozenset({"agents"})) == before


async def test_a_legacy_address_that_never_served_can_be_a_target(world: World) -> None:
    """G17: a Shadowed address can be named as the target, with no generation to restore."""
    await world.arrive(deployment_id="v1")
    assert await world.arrive(acp_url="http://legacy", registered_at=ago(60)) == "Shadowed"
    await world.roll_back(to="legacy")
    last = (await world.ledger())[-1]
    assert (last.to_acp_url, last.restored) == ("http://legacy", None)
    await world.roll_back()
    assert await world.production() == "v1"


async def test_without_a_legacy_address_it_is_no_target(world: World) -> None:
    """G17: 409, after If-Match was checked as in G10."""
    await world.arrive(deployment_id="v1")
    with pytest.raises(NothingToRollBackTo):
        await world.roll_back(to="legacy")
    with pytest.raises(GenerationMismatch):
        await world.roll_back(to="legacy", caller=Caller(actor="amy", if_generation=99))


async def test_a_rollback_to_a_named_version(world: World) -> None:
    """G17: it restores the version's last generation; for one that never served, none."""
    await served_in_turn(world, "v1", "v2", "v3")
    await world.arrive(deployment_id="v4")
    await world.roll_back(to="v1")
    await world.roll_back(to="v4")
    assert [(row.to_deployment_id, row.restored) for row in (await world.ledger())[-2:]] == [("v1", 1), ("v4", None)]
    await world.roll_back()
    assert await world.production() == "v1"


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("unknown", DeploymentNotFound),
        ("mail-1", DeploymentNotFound),
        ("deleted", DeploymentDeletedError),
        ("pending", DeploymentNotReady),
    ],
)
async def test_a_named_target_is_checked_as_a_promote_s(world: World, to: str, expected: type[PodiumError]) -> None:
    """G17: 404, 410, in production already, 412, 409, in this order; a refusal pauses nothing."""
    await served_in_turn(world, "v1", "deleted", "v2")
    await world.arrive("mail-bot", deployment_id="mail-1")
    await world.delete("deleted")
    await world.create(id="pending")
    before = await world.contents()
    with pytest.raises(expected):
        await world.roll_back(to=to)
    old = Caller(actor="amy", if_generation=1)
    with pytest.raises(GenerationMismatch if to == "pending" else expected):
        await world.roll_back(to=to, caller=old)
    assert await world.contents() == before
    await world.roll_back(to="v2", caller=old)
    assert (await world.agent()).generation == 3


async def test_if_match_guards_a_rollback(world: World) -> None:
    """G17: after another rollback, a rollback at the old generation is refused."""
    await served_in_turn(world, "v1", "v2", "v3")
    looked_at = Caller(actor="amy", if_generation=3)
    await world.roll_back(caller=looked_at)
    with pytest.raises(GenerationMismatch):
        await world.roll_back(caller=looked_at)
    assert await world.production() == "v2"


async def test_an_agent_that_never_served_has_no_target(world: World) -> None:
    """G17: without a usable target, 409, and nothing is paused."""
    await world.register(a_build())
    before = await world.contents()
    with pytest.raises(NothingToRollBackTo):
        await world.roll_back()
    assert await world.contents() == before


async def test_a_failed_production_can_be_rolled_back_from(world: World) -> None:
    """G15: a Failed production stays in production, and the agent is Ready after the rollback."""
    await served_in_turn(world, "v1", "v2")
    await world.fail("v2")
    assert (await world.agent()).status == "Failed"
    await world.roll_back()
    assert ((await world.agent()).status, await world.production()) == ("Ready", "v1")


@dataclass
class Expected:
    """The effects of a random history so far, as the model has them."""

    history: list[Cutover] = field(default_factory=lambda: [Cutover(LEGACY)])
    usable: set[str] = field(default_factory=lambda: {LEGACY, "v1", "v2", "v3", "v4"})

    @property
    def serves(self) -> str | None:
        """What serves now."""
        return self.history[-1].to

    def last_time(self, to: str) -> int | None:
        """The generation that a rollback to this target by name restores."""
        for generation in range(len(self.history), 0, -1):
            if self.history[generation - 1].to == to:
                return self.history[generation - 1].restored or generation
        return None


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_histories_roll_back_as_the_walk_says(world: World, seed: int) -> None:
    """G17: after any promotes, rollbacks, deletions, failures and legacy deployments, the walk gives the target."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible history, not a secret
    expected = Expected()
    await world.arrive(acp_url="http://legacy-0", registered_at=ago(60))
    await world.register(*[incoming(deployment_id=f"v{n}", registered_at=ago(50)) for n in (1, 2, 3, 4)])
    for step in range(25):
        await _one_step(world, expected, rng, step)
        ledger = await world.ledger()
        actual = [Cutover(row.to_deployment_id or LEGACY, row.restored) for row in ledger]
        assert actual == expected.history, f"seed {seed}, step {step}"


async def _one_step(world: World, expected: Expected, rng: random.Random, step: int) -> None:
    usable = sorted(expected.usable - {LEGACY})
    what = rng.choice(["back"] * 5 + ["promote"] * 4 + ["to"] * 2 + ["legacy", "fail", "delete"])
    if what == "back":
        restored = rollback_target(expected.history, expected.serves, expected.usable.__contains__)
        if restored is None:
            with pytest.raises(NothingToRollBackTo):
                await world.roll_back()
            return
        await world.roll_back()
        expected.history.append(Cutover(expected.history[restored - 1].to, restored))
    elif what == "to":
        to = rng.choice([*usable, LEGACY])
        await world.roll_back(to=to)
        if to != expected.serves:
            expected.history.append(Cutover(to, expected.last_time(to)))
    elif what == "promote" and usable:
        version = rng.choice(usable)
        await world.promote(version, caller=AMY)
        if version != expected.serves:
            expected.history.append(Cutover(version))
    elif what == "legacy":
        # Each half a second later and after the last promote, yet within the tolerance for clocks.
        assert (
            await world.arrive(acp_url=f"http://legacy-{step + 1}", registered_at=ago(-10 - step / 2)) == "Registered"
        )
        expected.history.append(Cutover(LEGACY))
    elif what in {"fail", "delete"} and len(usable) > 2:
        await _make_unusable(world, expected, rng.choice(usable), what)


async def _make_unusable(world: World, expected: Expected, version: str, what: str) -> None:
    """Make one version unable to serve: delete it, or fail it if it is in production."""
    if what == "fail" or version == expected.serves:
        await world.fail(version)
    else:
        await world.delete(version)
    expected.usable.discard(version)
