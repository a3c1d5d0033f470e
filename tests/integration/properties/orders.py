"""Finds a serial order that explains the results of concurrent operations."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.integration.properties.messages import Call
from tests.support.reference_model.model import Model
from tests.support.reference_model.picture import Picture, differences, of_model
from tests.support.reference_model.state import Moment, Refused

BETWEEN: Moment = 0.01  # two operations of one step that are not made in one transaction


@dataclass(frozen=True)
class Done:
    """A call, and the result that its caller got."""

    call: Call
    outcome: str

    def __str__(self) -> str:
        return f"{self.call.sentence} -> {self.outcome}"


def explain(before: Model, done: Sequence[Done], now: Moment, database: Picture) -> Model:
    """The model after the first serial order in which the model and the database agree.

    Raises `AssertionError` with the order that comes nearest.
    """
    objections: list[tuple[int, str]] = []
    for after, order in _orders(before, list(done), now, [], objections):
        found = differences(database, of_model(after))
        if not found:
            return after
        in_order = "" if len(done) == 1 else f" in the order {_numbers(order, done)}"
        objections.append((len(done) * 100 - len(found), "\n".join([f"After this{in_order}:", *found])))
    _, nearest = max(objections)
    what = "No serial order explains this:" if len(done) > 1 else "The model does not allow this:"
    listed = [f"  ({number}) {each}" for number, each in enumerate(done, 1)]
    raise AssertionError("\n".join([what, *listed, nearest]))


def _orders(
    model: Model, remaining: list[Done], now: Moment, order: list[Done], objections: list[tuple[int, str]]
) -> Iterator[tuple[Model, list[Done]]]:
    """Every order in which the model gives each caller the result that it got."""
    if not remaining:
        yield model, order
    frozen = pickle.dumps(model)
    for index, each in enumerate(remaining):
        for at in _moments(order[-1:], each, now):
            after: Model = pickle.loads(frozen)  # noqa: S301 - a copy, several times as fast as copy.deepcopy
            by_model = result_by_model(each.call, after, at)
            if by_model == each.outcome:
                others = remaining[:index] + remaining[index + 1 :]
                yield from _orders(after, others, at, [*order, each], objections)
            else:
                first = "".join(f" after {done.call.sentence}," for done in order[-1:])
                objections.append((len(order), f"Nearest:{first} the model gives: {each.call.sentence} -> {by_model}"))


def _moments(before: Sequence[Done], each: Done, now: Moment) -> list[Moment]:
    """When the next operation can have run, after one at this time: cutovers made together have the same time."""
    cutovers = [done.call.cutover for done in (*before, each) if done.call.cutover is not None]
    made_together = len(cutovers) > 1 and len({cutover.agent_id for cutover in cutovers}) == 1
    return [now + BETWEEN, now] if made_together else [now + BETWEEN]


def result_by_model(call: Call, model: Model, now: Moment) -> str:
    """The result that the model gives to the caller; changes the model."""
    try:
        return call.on_the_model(model, now)
    except Refused as refused:
        return f"refused: {refused}"


def _numbers(order: Sequence[Done], done: Sequence[Done]) -> str:
    return ", ".join(str(next(number for number, each in enumerate(done, 1) if each is one)) for one in order)
