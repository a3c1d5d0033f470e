"""Random runs against the reference model; Hypothesis reduces a failure to a short example.

`HYPOTHESIS_PROFILE=long` searches for ten minutes.
"""

import asyncio
import os
import time

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.properties.machines import AtOnce, OneAfterAnother, Results, Run
from tests.integration.properties.messages import Announce, Register
from tests.integration.properties.operations import Promote
from tests.integration.properties.stage import Stage

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
# Seconds per test; a slow machine runs fewer examples.
SEARCH_SECONDS = 300 if LONG else 18
SHRINK_SECONDS = 300 if LONG else 60

pytestmark = pytest.mark.timeout(1200 if LONG else 300)


def test_each_operation_has_the_result_of_the_model(stage: tuple[Stage, asyncio.Runner]) -> None:
    """One operation at a time: results, rows, ledger, events, inbox and order of times equal those of the model."""
    _run(OneAfterAnother, stage, runs=60, steps=25)


def test_concurrent_operations_equal_a_serial_order(stage: tuple[Stage, asyncio.Runner]) -> None:
    """Several sessions at once: one serial order explains every result and all stored data."""
    _run(AtOnce, stage, runs=50, steps=8)


def test_promotes_made_together_have_one_time(stage: tuple[Stage, asyncio.Runner]) -> None:
    """The second one changes nothing but the time of the last request, which is that of the first one's cutover."""
    on, runner = stage
    runner.run(on.begin())
    for operations in (
        [Register([Announce("a", version="a-v1")])],
        [Register([Announce("a", version="a-v2")])],
        [Promote("a-v2"), Promote("a-v2")],
    ):
        runner.run(on.run_step(operations))
    assert on.made_together == {"Promote": 2}


def _run(kind: type[Run], stage: tuple[Stage, asyncio.Runner], *, runs: int, steps: int) -> None:
    results = Results(time.monotonic() + SEARCH_SECONDS, SHRINK_SECONDS)
    machine = type(kind.__name__, (kind,), {"stage": stage[0], "runner": stage[1], "results": results})
    most = settings().max_examples if LONG else runs
    run_state_machine_as_test(machine, settings=settings(max_examples=most, stateful_step_count=steps))
    print(f"{kind.__name__}: {results.runs} runs, {len(results.steps)} steps")  # noqa: T201 - figures
