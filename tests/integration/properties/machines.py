"""The two state machines: operations one after another, and several at once."""

# ruff: noqa: D102 - the name of a rule describes it

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.integration.properties import strategies as some
from tests.integration.properties.operations import Operation
from tests.integration.properties.stage import Stage


@dataclass
class Results:
    """The results of all runs of one test, by the operations in them.

    A run that failed once always fails again: a lost race is a defect even if it is rare, and Hypothesis would report a
    different result as a flaky test. When the time is up, no new run starts.
    """

    search_deadline: float  # on the monotonic clock
    shrinking_seconds: float
    steps: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, AssertionError] = field(default_factory=dict)
    runs: int = 0

    def record_failure(self, run: str, error: AssertionError) -> None:
        """Store a failure. The first one limits the time that is left for finding a shorter example."""
        if not self.failures:
            self.search_deadline = time.monotonic() + self.shrinking_seconds
        self.failures[run] = error


class Run(RuleBasedStateMachine):
    """One run on a stage that the test binds to the class; each run starts with an empty database."""

    stage: Stage
    runner: asyncio.Runner
    results: Results

    def __init__(self) -> None:
        super().__init__()
        self._history = ""
        self._started = False

    def step(self, operations: Sequence[Operation], turns: Sequence[int] | None = None) -> None:
        """Run the next step and store its result; any result that the model does not allow fails the run."""
        self._history += f"{operations!r} {turns!r}\n"
        known = self._history in self.results.failures
        if not known and time.monotonic() < self.results.search_deadline:
            self._run_step(operations, turns)
        for line in self.results.steps.get(self._history, ()):
            note(line)
        if self._history in self.results.failures:
            raise self.results.failures[self._history]

    def _run_step(self, operations: Sequence[Operation], turns: Sequence[int] | None) -> None:
        if not self._started:
            self.runner.run(self.stage.begin())
            self._started = True
            self.results.runs += 1
        lines = len(self.stage.log)
        try:
            self.runner.run(self.stage.run_step(operations, turns))
        except AssertionError as error:
            if self._history in self.results.steps:
                error.add_note("\n".join(["This step passed before. The run:", *self.stage.log]))
            self.results.record_failure(self._history, error)
        self.results.steps[self._history] = self.stage.log[lines:]

    @initialize(beginning=some.BEGINNINGS)
    def it_begins(self, beginning: Sequence[Operation]) -> None:
        for operation in beginning:
            self.step([operation])


class OneAfterAnother(Run):
    """Each operation is one transaction, and no other transaction runs."""

    @rule(message=some.A_VERSION_ANNOUNCES_ITSELF)
    def a_version_announces_itself(self, message: Operation) -> None:
        self.step([message])

    @rule(message=some.A_LEGACY_POD_ANNOUNCES_ITSELF)
    def a_legacy_pod_announces_itself(self, message: Operation) -> None:
        self.step([message])

    @rule(message=some.A_BUILD_IS_ANNOUNCED)
    def a_build_is_announced(self, message: Operation) -> None:
        self.step([message])

    @rule(message=some.A_WRONG_MESSAGE_ARRIVES)
    def a_wrong_message_arrives(self, message: Operation) -> None:
        self.step([message])

    @rule(message=some.A_MESSAGE_IS_REDELIVERED)
    def a_message_is_redelivered(self, message: Operation) -> None:
        self.step([message])

    @rule(batch=some.A_BATCH_ARRIVES)
    def a_batch_arrives(self, batch: Operation) -> None:
        self.step([batch])

    @rule(promote=some.PROMOTE)
    def an_operator_promotes(self, promote: Operation) -> None:
        self.step([promote])

    @rule(rollback=some.ROLL_BACK)
    def an_operator_rolls_back(self, rollback: Operation) -> None:
        self.step([rollback])

    @rule(rollback=some.ROLL_BACK_TO)
    def an_operator_rolls_back_to(self, rollback: Operation) -> None:
        self.step([rollback])

    @rule(deployment=some.CREATE)
    def a_deployment_is_created(self, deployment: Operation) -> None:
        self.step([deployment])

    @rule(what=some.DELETE_SOMETHING)
    def something_is_deleted(self, what: Operation) -> None:
        self.step([what])

    @rule(settings=some.CHANGE)
    def an_agent_is_changed(self, settings: Operation) -> None:
        self.step([settings])

    @rule(deployment=some.FAIL)
    def probes_fail(self, deployment: Operation) -> None:
        self.step([deployment])


class AtOnce(Run):
    """Two to six operations start at once; `turns` chooses the task for each statement (None: they run freely)."""

    @rule(operations=some.SEVERAL_AT_ONCE, turns=some.IN_TURNS_OR_NOT)
    def at_once(self, operations: Sequence[Operation], turns: Sequence[int] | None) -> None:
        self.step(operations, turns)
