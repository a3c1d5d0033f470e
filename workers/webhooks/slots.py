"""How many deliveries may be under way: in all and per receiver, so that nothing that is stuck delays anything else."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from services.webhooks.deliveries import Claim

# A receiver that took longer the last time counts as slow.
PROMPT_SECONDS = 2.0
# Retries, and receivers that are slow, fail or are unknown, use at most this share of all slots.
UNPROVEN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be claimed now: first attempts or retries, how many per receiver, and how many in all."""

    retries: bool
    free: dict[UUID, int]
    total: int


class Slots:
    """The deliveries of one process that are under way, and which receivers have proved to be prompt."""

    def __init__(self, total: int, per_receiver: int) -> None:
        self._total = total
        self._per_receiver = per_receiver
        self._unproven_total = max(int(total * UNPROVEN_SHARE), 1)
        self._taken: Counter[tuple[UUID, bool]] = Counter()
        self._prompt: set[UUID] = set()

    def for_prompt(self, webhooks: Iterable[UUID]) -> Offer:
        """For first attempts of receivers that were prompt the last time."""
        prompt = (each for each in webhooks if each in self._prompt)
        return Offer(retries=False, free=self._free(prompt, self._per_receiver, retries=False), total=self._left)

    def for_unproven(self, webhooks: Iterable[UUID]) -> Offer:
        """For first attempts of all other receivers."""
        others = (each for each in webhooks if each not in self._prompt)
        limit = max(self._per_receiver // 2, 1)
        return Offer(retries=False, free=self._free(others, limit, retries=False), total=self._unproven_left)

    def for_retries(self, webhooks: Iterable[UUID]) -> Offer:
        """For retries: one at a time per receiver, beside its first attempts."""
        return Offer(retries=True, free=self._free(webhooks, 1, retries=True), total=self._unproven_left)

    def take(self, claimed: Claim) -> None:
        """A delivery begins."""
        self._taken[_key(claimed)] += 1

    def give_back(self, claimed: Claim) -> None:
        """A delivery has ended."""
        key = _key(claimed)
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]

    def learn(self, webhook: UUID, *, accepted: bool, seconds: float) -> None:
        """Remember whether the receiver was prompt the last time."""
        if accepted and seconds <= PROMPT_SECONDS:
            self._prompt.add(webhook)
        else:
            self._prompt.discard(webhook)

    @property
    def _left(self) -> int:
        return self._total - self._taken.total()

    @property
    def _unproven_left(self) -> int:
        taken = sum(count for (each, is_retry), count in self._taken.items() if is_retry or each not in self._prompt)
        return min(self._unproven_total - taken, self._left)

    def _free(self, webhooks: Iterable[UUID], limit: int, *, retries: bool) -> dict[UUID, int]:
        return {each: limit - self._taken[each, retries] for each in webhooks if self._taken[each, retries] < limit}


def _key(claimed: Claim) -> tuple[UUID, bool]:
    return claimed.webhook_id, claimed.attempt > 1
