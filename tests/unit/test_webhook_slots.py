from uuid import UUID, uuid4

import pytest

from services.webhooks.deliveries import Claim
from workers.webhooks.slots import PROMPT_SECONDS, Offer, Slots

A, B, C = uuid4(), uuid4(), uuid4()


def a_claim(webhook: UUID, *, attempt: int = 1) -> Claim:
    """A claim of this webhook."""
    return Claim(webhook, uuid4(), uuid4(), 1, attempt)


def taken(slots: Slots, webhook: UUID, count: int = 1, *, attempt: int = 1) -> list[Claim]:
    """These deliveries, begun."""
    claims = [a_claim(webhook, attempt=attempt) for _ in range(count)]
    for each in claims:
        slots.take(each)
    return claims


def test_a_receiver_is_unproven_until_it_was_prompt() -> None:
    """G101: then it gets all of its slots; after a failure or a slow answer half of them."""
    slots = Slots(total=100, per_receiver=4)
    assert slots.for_prompt([A]) == Offer(retries=False, free={}, total=100)
    assert slots.for_unproven([A]) == Offer(retries=False, free={A: 2}, total=50)
    slots.learn(A, accepted=True, seconds=0.1)
    assert slots.for_prompt([A, B]).free == {A: 4}
    assert slots.for_unproven([A, B]).free == {B: 2}
    for accepted, seconds in ((False, 0.1), (True, PROMPT_SECONDS + 1)):
        slots.learn(A, accepted=True, seconds=0.1)
        slots.learn(A, accepted=accepted, seconds=seconds)
        assert slots.for_prompt([A]).free == {}


def test_retries_have_a_slot_beside_first_attempts() -> None:
    """G101: so an agent whose event is repeated never holds the slot that another agent's first attempt needs."""
    slots = Slots(total=100, per_receiver=1)
    retry = taken(slots, A, attempt=2)
    assert slots.for_retries([A, B]).free == {B: 1}
    assert slots.for_unproven([A]).free == {A: 1}
    first = taken(slots, A)
    assert slots.for_unproven([A]).free == {}
    for each in (*retry, *first):
        slots.give_back(each)
    assert slots.for_retries([A]).free == slots.for_unproven([A]).free == {A: 1}


@pytest.mark.parametrize("attempt", [1, 2])
def test_receivers_in_trouble_leave_half_of_the_slots(attempt: int) -> None:
    """G101: whatever they use, prompt receivers can use the other half; and all together never more than the total."""
    slots = Slots(total=4, per_receiver=4)
    slots.learn(C, accepted=True, seconds=0.1)
    taken(slots, A, attempt=attempt)
    taken(slots, B, attempt=attempt)
    assert slots.for_unproven([A, B]).total == slots.for_retries([A, B]).total == 0
    assert slots.for_prompt([C]) == Offer(retries=False, free={C: 4}, total=2)
    taken(slots, C, 2)
    assert slots.for_prompt([C]).total == 0
