import asyncio
import random
from collections import Counter

import pytest

from tests.integration.services.world import World
from tests.support.factories import a_build
from tests.support.reference_model.comparison import assert_matches
from tests.support.shuffle import FRESH_SEED, POLICIES, Shuffle

WORKERS = 3


@pytest.mark.parametrize("seed", [1, 2, 3, FRESH_SEED])
async def test_any_order_of_delivery_ends_as_the_sequential_model_says(world: World, seed: int) -> None:
    """G3: fed in first-decided order, the model has the same agents, deployments, ledger, events and addresses."""
    shuffle = Shuffle(random.Random(seed))  # noqa: S311 - a reproducible order, not a secret
    for name, policy in POLICIES.items():
        if policy is not None:
            build = a_build(name, docker_image=f"{name}:0")
            await world.register(build)
            await world.change(name, auto_promote=policy)
            assert build.content.message_id is not None
            shuffle.messages[build.content.message_id] = build.content.request  # type: ignore[union-attr]
    shuffle.fill()
    batches = shuffle.deliveries()

    async def work() -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while batches:
            outcomes.update(await world.register(*batches.pop()))
        return outcomes

    outcomes = sum(await asyncio.gather(*[work() for _ in range(WORKERS)]), Counter[str]())
    try:
        await world.do(lambda session: assert_matches(session, shuffle.messages))
    except AssertionError as difference:
        difference.add_note(f"Run it again with FRESH_SEED={seed}.")
        raise
    assert outcomes.keys() >= {"Registered", "Duplicate", "Stale", "Rejected"}
