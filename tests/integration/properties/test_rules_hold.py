"""Random stories against the rules: a failure shrinks to a short one.

`HYPOTHESIS_PROFILE=long` searches for ten minutes.
"""

import asyncio
import os
import time

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.properties.machines import AtOnce, Memory, OneAfterAnother, Story
from tests.integration.properties.stage import Stage

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
# Of each test; fewer stories are told on a machine that has no time for all of them.
SEARCHING_SECONDS = 300 if LONG else 18
SHRINKING_SECONDS = 300 if LONG else 60

pytestmark = pytest.mark.timeout(1200 if LONG else 300)


def test_each_operation_does_what_the_rules_say(stage: tuple[Stage, asyncio.Runner]) -> None:
    """One operation at a time: answers, rows, ledger, events, inbox and order of times are the sequential model's."""
    _tell(OneAfterAnother, stage, stories=60, steps=25)


def test_operations_at_once_do_what_some_order_of_them_does(stage: tuple[Stage, asyncio.Runner]) -> None:
    """Several sessions at once: one serial order explains every answer and all that is stored."""
    _tell(AtOnce, stage, stories=50, steps=8)


def _tell(kind: type[Story], stage: tuple[Stage, asyncio.Runner], *, stories: int, steps: int) -> None:
    memory = Memory(time.monotonic() + SEARCHING_SECONDS, SHRINKING_SECONDS)
    story = type(kind.__name__, (kind,), {"stage": stage[0], "runner": stage[1], "memory": memory})
    most = settings().max_examples if LONG else stories
    run_state_machine_as_test(story, settings=settings(max_examples=most, stateful_step_count=steps))
    print(f"{kind.__name__}: {memory.stories} stories, {len(memory.told)} steps")  # noqa: T201 - figures
