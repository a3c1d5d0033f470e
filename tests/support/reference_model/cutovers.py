"""Judges the ledger of one agent by the model: every request is made again, in the order in which it was committed.

The events of an agent are in that order, and everything that a promote or a rollback depends on is among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests.support.reference_model.model import Model
from tests.support.reference_model.rollback_walk import LEGACY
from tests.support.reference_model.state import Life, Moment, Version

_ADDRESS = ("http://legacy", "/api")


@dataclass(frozen=True)
class Asked:
    """What a caller has asked for: a rollback, or a promote, with the generation that it requires."""

    rollback: bool
    to: str | None
    if_generation: int | None


@dataclass(frozen=True)
class Generation:
    """One row of the ledger; what served is a deployment id, `legacy` or None."""

    cause: str
    actor: str
    before: str | None
    to: str | None
    restored: int | None


def generation_of(row: Any) -> Generation:
    """A row of `promotions`."""
    before, to = (
        getattr(row, f"{side}_deployment_id") or (LEGACY if getattr(row, f"{side}_acp_url") else None)
        for side in ("from", "to")
    )
    return Generation(row.cause, row.actor, before, to, row.restored)


def judge(
    name: str,
    events: Sequence[tuple[str, str, int]],
    ledger: Mapping[int, Generation],
    asked: Mapping[str, Asked],
) -> None:
    """Raise if the model would have made another ledger of these requests, which are given by actor.

    `events` are kind, subject and generation; the agent begins with a legacy address and keeps it.
    """
    model = Model()
    life = model.lives[name] = Life(label=name, name=name)
    for moment, (kind, subject, generation) in enumerate(events):
        now = float(moment)
        if kind == "deployment.created":
            model.versions[subject] = Version(id=subject, owner=name, created_at=now, status_since=now)
        elif kind in {"deployment.ready", "deployment.failed"}:
            model.versions[subject].status = "Ready" if kind == "deployment.ready" else "Failed"
        elif kind == "deployment.deleted":
            model.delete(name, subject, now)
        elif generation > life.generation:
            _make(model, life, ledger[generation], asked, now)
    made = [(row.cause, row.before, row.to, row.restored) for row in life.ledger]
    stored = [(row.cause, row.before, row.to, row.restored) for _, row in sorted(ledger.items())]
    different = [pair for pair in enumerate(zip_longest(stored, made), 1) if pair[1][0] != pair[1][1]]
    assert not different, f"generation, stored and by the model, of {name}: {different[0]}"


def _make(model: Model, life: Life, row: Generation, asked: Mapping[str, Asked], now: Moment) -> None:
    if row.cause == "legacy":
        model.cut_over(life, "legacy", LEGACY, now, legacy_url=_ADDRESS[0])
        life.legacy = _ADDRESS
        return
    wanted = asked[row.actor]
    if wanted.rollback:
        model.roll_back(life.label, wanted.to, wanted.if_generation, now)
    else:
        model.promote(life.label, wanted.to or "", wanted.if_generation, now)
