"""Commands of operators and pipelines: create and delete deployments, change and delete agents."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import UUID, uuid4

from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.events import AgentDeleted, DeploymentCreated, DeploymentDeleted
from services.domain.caller import Caller
from services.domain.cutover import cutover
from services.domain.registration_policy import refusal
from services.domain.state import (
    Affinity,
    AgentSnapshot,
    AutoPromote,
    ConversationKeys,
    DeploymentState,
    ForwardAuthorization,
    OnFailure,
    emit,
    serving,
)
from services.errors import (
    AgentDeletedError,
    ConversationsOpen,
    DeploymentDeletedError,
    DeploymentNotFound,
    ProductionCannotBeDeleted,
)
from services.identities.audit import record
from services.promotion.promote import require_generation
from services.routing.conversations import DEFAULT_TERMS, ConversationTerms
from services.routing.draining import open_conversations
from services.storage.store import AGENT_FIELDS, lock_state, save_state

T = TypeVar("T")
# Resets a value to that of the setting.
Default = Literal["default"]

_EXPIRE_ONE = text("UPDATE deployments SET expires_at = :at, draining_since = NULL WHERE id = :id")
_EXPIRE_ALL = text("""
UPDATE deployments SET expires_at = :at, draining_since = NULL WHERE agent_id = :agent_id AND expires_at IS NULL
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeployment:
    """A deployment that is created before its pod registers; a random id if `id` is None."""

    docker_image: str
    registration_metadata: dict[str, Any] | None = None
    sgp_deploy_id: str | None = None
    helm_release_name: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChange:
    """New values for an agent; None leaves a value as it is."""

    description: str | None = None
    auto_promote: AutoPromote | None = None
    auto_promote_paused: bool | None = None
    on_failure: OnFailure | None = None
    probe_interval_seconds: float | Default | None = None
    probe_threshold: int | Default | None = None
    probe_timeout_seconds: float | Default | None = None
    affinity: Affinity | None = None
    conversation_keys: ConversationKeys | Literal["none"] | None = None
    conversation_idle_seconds: float | Default | None = None
    conversation_max_age_seconds: float | Default | None = None
    drain_deadline_seconds: float | Default | None = None
    forward_authorization: ForwardAuthorization | None = None
    calls_per_second: float | Literal["none"] | None = None
    calls_in_flight: int | Literal["none"] | None = None


async def create_deployment(
    session: AsyncSession, agent_id: UUID, new: NewDeployment, caller: Caller
) -> DeploymentState:
    """Create a Pending deployment and return it; returns the stored one if it has the same id and agrees.

    Raises, in this order: `AgentNotFound`, `AgentDeletedError`, `DeploymentDeletedError`, `GenerationMismatch`,
    `DeploymentOfAnotherAgent`, `ImageConflict`. Others see it once the transaction is committed.
    """
    deployment_id = new.id or str(uuid4())
    before = await lock_state(session, agent_id, deployment_id)
    if before.agent.deleted_at is not None:
        raise AgentDeletedError
    stored = before.deployments.get(deployment_id)
    if stored is not None:
        after = before.with_deployment(_confirmed(before, stored, new, caller.if_generation))
    else:
        require_generation(before, caller.if_generation)
        after = _created(caller.decides(before), deployment_id, new)
    await save_state(session, before, after)
    if stored is None:
        await record(
            session,
            caller,
            "deployment.created",
            deployment_id,
            agent_name=before.agent.name,
            details={"docker_image": new.docker_image},
        )
    return after.deployments[deployment_id]


async def delete_deployment(
    session: AsyncSession,
    agent_id: UUID,
    deployment_id: str,
    caller: Caller,
    *,
    terms: ConversationTerms = DEFAULT_TERMS,
    force: bool = False,
) -> None:
    """Delete a preview: lists omit it, and calls to it get 410. A second time changes nothing.

    Raises, in this order: `AgentNotFound`, `DeploymentNotFound`, `GenerationMismatch`, `ProductionCannotBeDeleted`, and
    `ConversationsOpen` for a draining deployment unless `force` is true. Others see it once the transaction is
    committed.
    """
    before = await lock_state(session, agent_id, deployment_id)
    deployment = before.deployments.get(deployment_id)
    if deployment is None or deployment.agent_id != agent_id:
        raise DeploymentNotFound
    if deployment.expires_at is not None:
        return
    require_generation(before, caller.if_generation)
    if deployment.is_production:
        raise ProductionCannotBeDeleted
    if deployment.draining_since is not None and not force:
        still_open = await open_conversations(session, deployment_id, terms)
        if still_open is not None and still_open.number:
            raise ConversationsOpen(
                f"{still_open.number} conversations are open, until {still_open.until:%Y-%m-%dT%H:%M:%SZ} at most: "
                "wait with 'podium drain', or send force."
            )
    deleted = DeploymentDeleted(
        agent_id=str(agent_id), agent_name=before.agent.name, deployment_id=deployment_id, expires_at=before.now
    )
    await session.execute(_EXPIRE_ONE, {"id": deployment_id, "at": before.now})
    await save_state(session, before, emit(caller.decides(before), deleted, subject=deployment_id))
    await record(session, caller, "deployment.deleted", deployment_id, agent_name=before.agent.name)


async def delete_agent(session: AsyncSession, agent_id: UUID, caller: Caller) -> AgentSnapshot:
    """Delete the agent and all its deployments; its name is free then. A second time changes nothing.

    Returns the agent. Raises `AgentNotFound`, `GenerationMismatch`. Others see it once the transaction is committed.
    """
    before = await lock_state(session, agent_id)
    if before.agent.deleted_at is not None:
        return before
    require_generation(before, caller.if_generation)
    state = caller.decides(before)
    deleted = replace(state.agent, deleted_at=state.now, updated_at=state.now, status="Deleted", status_reason=None)
    if serving(state) is not None:
        state = cutover(state, None, cause="agent_deleted", actor=caller.actor, reason=caller.reason, agent=deleted)
    else:
        state = replace(state, agent=deleted)
    data = AgentDeleted(agent_id=str(agent_id), agent_name=deleted.name, deleted_at=state.now)
    state = emit(state, data)
    await save_state(session, before, state)
    await session.execute(_EXPIRE_ALL, {"agent_id": agent_id, "at": state.now})
    await record(session, caller, "agent.deleted", str(agent_id), agent_name=before.agent.name)
    return state


async def change_agent(session: AsyncSession, agent_id: UUID, change: AgentChange, caller: Caller) -> AgentSnapshot:
    """Apply these values; returns the agent.

    Raises, in this order: `AgentNotFound`, `AgentDeletedError`, `GenerationMismatch`. Others see it once the
    transaction is committed.
    """
    before = await lock_state(session, agent_id)
    agent = before.agent
    if agent.deleted_at is not None:
        raise AgentDeletedError
    changed = replace(
        agent,
        description=agent.description if change.description is None else change.description,
        auto_promote=change.auto_promote or agent.auto_promote,
        auto_promote_paused=(
            agent.auto_promote_paused if change.auto_promote_paused is None else change.auto_promote_paused
        ),
        on_failure=change.on_failure or agent.on_failure,
        probe_interval_seconds=_chosen(change.probe_interval_seconds, agent.probe_interval_seconds),
        probe_threshold=_chosen(change.probe_threshold, agent.probe_threshold),
        probe_timeout_seconds=_chosen(change.probe_timeout_seconds, agent.probe_timeout_seconds),
        affinity=change.affinity or agent.affinity,
        conversation_keys=(
            None if change.conversation_keys == "none" else change.conversation_keys or agent.conversation_keys
        ),
        conversation_idle_seconds=_chosen(change.conversation_idle_seconds, agent.conversation_idle_seconds),
        conversation_max_age_seconds=_chosen(change.conversation_max_age_seconds, agent.conversation_max_age_seconds),
        drain_deadline_seconds=_chosen(change.drain_deadline_seconds, agent.drain_deadline_seconds),
        forward_authorization=change.forward_authorization or agent.forward_authorization,
        calls_per_second=_chosen(change.calls_per_second, agent.calls_per_second),
        calls_in_flight=_chosen(change.calls_in_flight, agent.calls_in_flight),
    )
    if changed == agent:
        return before
    require_generation(before, caller.if_generation)
    after = replace(before, agent=replace(changed, updated_at=before.now))
    await save_state(session, before, after)
    details = {name: getattr(changed, name) for name in AGENT_FIELDS if getattr(changed, name) != getattr(agent, name)}
    await record(session, caller, "agent.changed", str(agent_id), agent_name=before.agent.name, details=details)
    return after


def _chosen(value: T | Default | Literal["none"] | None, stored: T | None) -> T | None:
    """The value to store: the stored one if `value` is None, and None if it is `default` or `none`."""
    if value is None:
        return stored
    return None if value in {"default", "none"} else value  # type: ignore[return-value]


def _confirmed(
    state: AgentSnapshot, stored: DeploymentState, new: NewDeployment, if_generation: int | None
) -> DeploymentState:
    """The stored deployment, with the new image if it had none. Raises as `create_deployment` does."""
    error = refusal(state.agent, stored, new.docker_image)
    if isinstance(error, DeploymentDeletedError):
        raise error
    confirmed = replace(stored, docker_image=new.docker_image)
    if error is not None or confirmed != stored:
        require_generation(state, if_generation)
    if error is not None:
        raise error
    return confirmed


def _created(state: AgentSnapshot, deployment_id: str, new: NewDeployment) -> AgentSnapshot:
    deployment = DeploymentState(
        id=deployment_id,
        agent_id=state.agent.id,
        agent_name=state.agent.name,
        docker_image=new.docker_image,
        registration_metadata=new.registration_metadata,
        status="Pending",
        status_changed_at=state.now,
        created_at=state.now,
        sgp_deploy_id=new.sgp_deploy_id,
        helm_release_name=new.helm_release_name,
    )
    created = DeploymentCreated(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=deployment_id,
        docker_image=new.docker_image,
    )
    return emit(state.with_deployment(deployment), created, subject=deployment_id)
