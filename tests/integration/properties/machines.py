"""The two storytellers: one operation after another, and several at once."""

# ruff: noqa: D102 - a rule's name says what happens

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
class Memory:
    """What became of the stories of one test, by all that was said in them.

    What failed once fails each time it is told again: a race that is lost now and then is a defect all the same, and
    Hypothesis would take another outcome for a fault of the test. When time is up nothing new is told.
    """

    searching_ends: float  # by the monotonic clock
    shrinking_seconds: float
    told: dict[str, list[str]] = field(default_factory=dict)
    lost: dict[str, AssertionError] = field(default_factory=dict)
    stories: int = 0

    def lose(self, story: str, error: AssertionError) -> None:
        """Remember a failure; the first one leaves some time to find a short story for it."""
        if not self.lost:
            self.searching_ends = time.monotonic() + self.shrinking_seconds
        self.lost[story] = error


class Story(RuleBasedStateMachine):
    """A story on a stage that the test binds to the class; each starts in an empty database."""

    stage: Stage
    runner: asyncio.Runner
    memory: Memory

    def __init__(self) -> None:
        super().__init__()
        self._so_far = ""
        self._begun = False

    def tell(self, operations: Sequence[Operation], turns: Sequence[int] | None = None) -> None:
        """The next step; what came of it is noted, and whatever the rules do not say fails the story."""
        self._so_far += f"{operations!r} {turns!r}\n"
        known = self._so_far in self.memory.lost
        if not known and time.monotonic() < self.memory.searching_ends:
            self._tell_first(operations, turns)
        for line in self.memory.told.get(self._so_far, ()):
            note(line)
        if self._so_far in self.memory.lost:
            raise self.memory.lost[self._so_far]

    def _tell_first(self, operations: Sequence[Operation], turns: Sequence[int] | None) -> None:
        if not self._begun:
            self.runner.run(self.stage.begin())
            self._begun = True
            self.memory.stories += 1
        lines = len(self.stage.story)
        try:
            self.runner.run(self.stage.happen(operations, turns))
        except AssertionError as error:
            if self._so_far in self.memory.told:
                error.add_note("\n".join(["This went well before. The story:", *self.stage.story]))
            self.memory.lose(self._so_far, error)
        self.memory.told[self._so_far] = self.stage.story[lines:]

    @initialize(beginning=some.BEGINNINGS)
    def it_begins(self, beginning: Sequence[Operation]) -> None:
        for operation in beginning:
            self.tell([operation])


class OneAfterAnother(Story):
    """Each operation is one transaction, and nobody else is there."""

    @rule(message=some.A_VERSION_ANNOUNCES_ITSELF)
    def a_version_announces_itself(self, message: Operation) -> None:
        self.tell([message])

    @rule(message=some.A_LEGACY_POD_ANNOUNCES_ITSELF)
    def a_legacy_pod_announces_itself(self, message: Operation) -> None:
        self.tell([message])

    @rule(message=some.A_BUILD_IS_ANNOUNCED)
    def a_build_is_announced(self, message: Operation) -> None:
        self.tell([message])

    @rule(message=some.A_WRONG_MESSAGE_ARRIVES)
    def a_wrong_message_arrives(self, message: Operation) -> None:
        self.tell([message])

    @rule(message=some.A_MESSAGE_COMES_AGAIN)
    def a_message_comes_again(self, message: Operation) -> None:
        self.tell([message])

    @rule(batch=some.A_BATCH_ARRIVES)
    def a_batch_arrives(self, batch: Operation) -> None:
        self.tell([batch])

    @rule(promote=some.PROMOTE)
    def somebody_promotes(self, promote: Operation) -> None:
        self.tell([promote])

    @rule(rollback=some.ROLL_BACK)
    def somebody_rolls_back(self, rollback: Operation) -> None:
        self.tell([rollback])

    @rule(rollback=some.ROLL_BACK_TO)
    def somebody_rolls_back_to(self, rollback: Operation) -> None:
        self.tell([rollback])

    @rule(deployment=some.CREATE)
    def a_deployment_is_created(self, deployment: Operation) -> None:
        self.tell([deployment])

    @rule(what=some.DELETE_SOMETHING)
    def something_is_deleted(self, what: Operation) -> None:
        self.tell([what])

    @rule(settings=some.CHANGE)
    def an_agent_is_changed(self, settings: Operation) -> None:
        self.tell([settings])

    @rule(deployment=some.FAIL)
    def probes_fail(self, deployment: Operation) -> None:
        self.tell([deployment])


class AtOnce(Story):
    """Two to six operations start at once; `turns` says who goes on, statement by statement (None: as they like)."""

    @rule(operations=some.SEVERAL_AT_ONCE, turns=some.IN_TURNS_OR_NOT)
    def at_once(self, operations: Sequence[Operation], turns: Sequence[int] | None) -> None:
        self.tell(operations, turns)
