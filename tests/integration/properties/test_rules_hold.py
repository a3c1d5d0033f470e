"""Random stories against the rules. A failure shrinks to a short one; `HYPOTHESIS_PROFILE=long` looks for an hour."""

import asyncio
import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.properties.machines import AtOnce, OneAfterAnother, Story
from tests.integration.properties.stage import Stage

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

pytestmark = pytest.mark.timeout(0 if LONG else 120)


def test_each_operation_does_what_the_rules_say(stage: tuple[Stage, asyncio.Runner]) -> None:
    """One operation at a time: answers, rows, ledger, events, inbox and order of times are the sequential model's."""
    _tell(OneAfterAnother, stage, examples=30, steps=25)


def test_operations_at_once_do_what_some_order_of_them_does(stage: tuple[Stage, asyncio.Runner]) -> None:
    """Several sessions at once: one serial order explains every answer and all that is stored."""
    _tell(AtOnce, stage, examples=20, steps=8)


def _tell(story: type[Story], stage: tuple[Stage, asyncio.Runner], *, examples: int, steps: int) -> None:
    told_here = type(story.__name__, (story,), {"stage": stage[0], "runner": stage[1]})
    run_state_machine_as_test(
        told_here,
        settings=settings(max_examples=settings().max_examples if LONG else examples, stateful_step_count=steps),
    )
