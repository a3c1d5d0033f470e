"""The two storytellers: one operation after another, and several at once."""

# ruff: noqa: D102 - a rule's name says what happens

import asyncio
from collections.abc import Sequence

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.integration.properties import strategies as some
from tests.integration.properties.operations import Operation
from tests.integration.properties.stage import Stage


class Story(RuleBasedStateMachine):
    """A story on a stage that the test binds to the class; each starts in an empty database."""

    stage: Stage
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.runner.run(self.stage.begin())

    def tell(self, operations: Sequence[Operation], turns: Sequence[int] = ()) -> None:
        """The next step; what came of it is noted, and whatever the rules do not say fails the story."""
        told = len(self.stage.story)
        try:
            self.runner.run(self.stage.happen(operations, turns))
        finally:
            for line in self.stage.story[told:]:
                note(line)


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

    @rule(deployment=some.DELETE)
    def a_deployment_is_deleted(self, deployment: Operation) -> None:
        self.tell([deployment])

    @rule(agent=some.DELETE_AGENT)
    def an_agent_is_deleted(self, agent: Operation) -> None:
        self.tell([agent])

    @rule(settings=some.CHANGE)
    def an_agent_is_changed(self, settings: Operation) -> None:
        self.tell([settings])

    @rule(deployment=some.FAIL)
    def probes_fail(self, deployment: Operation) -> None:
        self.tell([deployment])


class AtOnce(Story):
    """Two to six operations start at once; `turns` says who may go on, statement by statement, until it ends."""

    @rule(operations=some.SEVERAL_AT_ONCE, turns=some.TURNS)
    def at_once(self, operations: Sequence[Operation], turns: Sequence[int]) -> None:
        self.tell(operations, turns)
