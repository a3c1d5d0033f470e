"""Which changes form a batch."""

import asyncio
from collections.abc import Sequence

from api.batches import Batches
from services.settings import Settings


async def test_a_change_that_must_be_first_waits_for_the_next_batch() -> None:
    """G95: with what follows it of the same agent, in order; changes of other agents do not wait for it."""
    made: list[list[str]] = []
    go_on = asyncio.Event()

    async def work(changes: Sequence[str]) -> list[str | None]:
        made.append(list(changes))
        await go_on.wait()
        return list(changes)

    batches: Batches[str, str] = Batches(Settings(), work, must_be_first=lambda change: change.startswith("back"))
    changes = ["a first", "b promote", "back b 1", "b again", "back c", "back b 2", "c after"]
    tasks = [asyncio.create_task(batches.make(each.removeprefix("back ")[0], each)) for each in changes]
    go_on.set()
    assert await asyncio.gather(*tasks) == changes
    assert made == [["a first", "b promote", "back c", "c after"], ["back b 1", "b again"], ["back b 2"]]


async def test_many_changes_of_one_agent_delay_no_other() -> None:
    """G95: more of them wait than a batch takes, and each must be the first of its agent."""
    made: list[list[str]] = []

    async def work(changes: Sequence[str]) -> list[str | None]:
        made.append(list(changes))
        await asyncio.sleep(0)
        return list(changes)

    batches: Batches[str, str] = Batches(Settings(batch_size=5), work, must_be_first=lambda _: True)
    of_one = [asyncio.create_task(batches.make("a", f"a {number}")) for number in range(20)]
    await batches.make("b", "b")
    assert sum(map(len, made)) <= 3
    await asyncio.gather(*of_one)
    assert [change for batch in made for change in batch if change != "b"] == [f"a {number}" for number in range(20)]
