"""The walk that finds the target of a rollback, on plain values: G17 only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEGACY = "legacy"


@dataclass(frozen=True)
class Cutover:
    """One generation of a history, as input of the walk."""

    to: str | None  # a deployment id, `legacy`, or None
    restored: int | None = None  # 1 is the first generation


def rollback_target(history: Sequence[Cutover], serves: str | None, usable: Callable[[str], bool]) -> int | None:
    """G17: the generation that a rollback restores; None if nothing that served before can serve now."""
    generation = len(history)
    while generation > 0:
        generation = history[generation - 1].restored or generation
        to = history[generation - 1].to
        if to is not None and to != serves and usable(to):
            return generation
        generation -= 1
    return None
