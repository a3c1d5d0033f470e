"""Operations on agents; bound to a scene, each becomes a `Call`.

Promote("a-v2", if_generation="current").bind(scene)
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.agents import commands as lifecycle
from services.agents.commands import AgentChange, NewDeployment
from services.domain.caller import Caller
from services.domain.state import AgentSnapshot, AutoPromote
from services.promotion import promote as promotion
from services.promotion import rollback, together
from tests.integration.properties.messages import Call, Register, ReprAsCall, Scene
from tests.support.reference_model.rollback_walk import LEGACY

AMY = Caller(actor="amy")
_FAIL = (
    text("UPDATE deployments SET status = 'Failed', status_changed_at = clock_timestamp() WHERE id = :id"),
    text("UPDATE agents SET status = 'Failed' WHERE production_deployment_id = :id"),
)


@dataclass(frozen=True, repr=False)
class Promote(ReprAsCall):
    """A promote; `through` names an agent other than the version's own. As over HTTP, unless it is `locked`."""

    version: str
    through: str | None = None
    if_generation: str | None = None
    locked: bool = False

    def bind(self, scene: Scene) -> Call:
        """The call, with the generation that is current now."""
        label, deployment = scene.label(self.through or owner(self.version)), scene.deployment(self.version)
        agent_id, caller = scene.agent_id(label), _caller(scene, label, self.if_generation)
        return Call(
            f"{deployment} is promoted as {label}'s{_condition(caller)}",
            lambda model, now: model.promote(label, deployment, caller.if_generation, now),
            _generation(lambda session: promotion.promote(session, agent_id, deployment, caller)),
            None if self.locked else together.Promote(agent_id, deployment, caller),
        )


@dataclass(frozen=True, repr=False)
class RollBack(ReprAsCall):
    """A rollback: to what served before, to a version, or to `legacy`. As over HTTP, unless it is `locked`."""

    agent: str
    to: str | None = None
    if_generation: str | None = None
    locked: bool = False

    def bind(self, scene: Scene) -> Call:
        """The call, with the generation that is current now."""
        label = scene.label(self.agent)
        to = scene.deployment(self.to) if self.to not in {None, LEGACY} else self.to
        agent_id, caller = scene.agent_id(label), _caller(scene, label, self.if_generation)
        return Call(
            f"{label} is rolled back{f' to {to}' if to else ''}{_condition(caller)}",
            lambda model, now: model.roll_back(label, to, caller.if_generation, now),
            _generation(lambda session: rollback.roll_back(session, agent_id, caller, to=to)),
            None if self.locked else together.RollBack(agent_id, to, caller),
        )


@dataclass(frozen=True, repr=False)
class Create(ReprAsCall):
    """The creation of a deployment before its pod registers."""

    version: str
    image: str = "image:1"
    through: str | None = None

    def bind(self, scene: Scene) -> Call:
        """The call, for the agent that exists now."""
        label, deployment = scene.label(self.through or owner(self.version)), scene.deployment(self.version)
        agent_id, new = scene.agent_id(label), NewDeployment(id=deployment, docker_image=self.image)

        async def on_the_database(session: AsyncSession) -> str:
            return (await lifecycle.create_deployment(session, agent_id, new, AMY)).status

        return Call(
            f"{deployment} is created for {label} with {self.image}",
            lambda model, now: model.create(label, deployment, self.image, now),
            on_the_database,
        )


@dataclass(frozen=True, repr=False)
class Delete(ReprAsCall):
    """The deletion of a deployment."""

    version: str
    through: str | None = None

    def bind(self, scene: Scene) -> Call:
        """The call, for the agent that exists now."""
        label, deployment = scene.label(self.through or owner(self.version)), scene.deployment(self.version)
        agent_id = scene.agent_id(label)

        async def on_the_database(session: AsyncSession) -> str:
            await lifecycle.delete_deployment(session, agent_id, deployment, AMY)
            return "done"

        return Call(
            f"{deployment} of {label} is deleted",
            lambda model, now: model.delete(label, deployment, now),
            on_the_database,
        )


@dataclass(frozen=True, repr=False)
class DeleteAgent(ReprAsCall):
    """The deletion of an agent."""

    agent: str

    def bind(self, scene: Scene) -> Call:
        """The call, for the agent that exists now."""
        label = scene.label(self.agent)
        agent_id = scene.agent_id(label)
        return Call(
            f"{label} is deleted",
            lambda model, now: model.delete_agent(label, now),
            _generation(lambda session: lifecycle.delete_agent(session, agent_id, AMY)),
        )


@dataclass(frozen=True, repr=False)
class Change(ReprAsCall):
    """New settings of an agent."""

    agent: str
    auto_promote: AutoPromote | None = None
    paused: bool | None = None

    def bind(self, scene: Scene) -> Call:
        """The call, for the agent that exists now."""
        label = scene.label(self.agent)
        agent_id = scene.agent_id(label)
        change = AgentChange(auto_promote=self.auto_promote, auto_promote_paused=self.paused)
        return Call(
            f"{label} is set to auto_promote={self.auto_promote}, paused={self.paused}",
            lambda model, _: model.change(label, policy=self.auto_promote, paused=self.paused),
            _generation(lambda session: lifecycle.change_agent(session, agent_id, change, AMY)),
        )


@dataclass(frozen=True, repr=False)
class Fail(ReprAsCall):
    """A verdict that a deployment is Failed, written directly; no other operation may run at the same time."""

    version: str

    def bind(self, scene: Scene) -> Call:
        """The call; it does nothing if the deployment does not exist."""
        deployment = scene.deployment(self.version)

        async def on_the_database(session: AsyncSession) -> str:
            for statement in _FAIL:
                await session.execute(statement, {"id": deployment})
            return "done"

        return Call(
            f"{deployment} fails its probes",
            lambda model, now: model.fail(deployment, now),
            on_the_database,
        )


Operation = Register | Promote | RollBack | Create | Delete | DeleteAgent | Change | Fail


def owner(version: str) -> str:
    """The name of the agent that the version belongs to."""
    return version.removeprefix("old ").partition("-")[0]


def _caller(scene: Scene, label: str, which: str | None) -> Caller:
    return Caller(actor="amy", if_generation=scene.generation(label, which))


def _condition(caller: Caller) -> str:
    return "" if caller.if_generation is None else f" if at generation {caller.if_generation}"


def _generation(work: Callable[[AsyncSession], Awaitable[AgentSnapshot]]) -> Callable[[AsyncSession], Awaitable[str]]:
    async def on_the_database(session: AsyncSession) -> str:
        return f"generation {(await work(session)).agent.generation}"

    return on_the_database
