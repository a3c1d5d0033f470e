"""Instances: the pods of a deployment that name themselves, and the deployment's state that follows from theirs.

A deployment becomes one with instances when the first of them announces itself. A pod that announced the deployment
before, without an instance id, is then an instance with the empty id.
"""

from msgspec.structs import replace

from contracts.events import InstanceFailed, InstanceGone, InstanceReady
from services.domain.readiness import UNPROVEN, set_failed, set_ready
from services.domain.state import (
    AgentSnapshot,
    DeploymentState,
    InstanceState,
    Precedence,
    emit,
)

GOODBYE = "it said goodbye"


def with_unnamed(state: AgentSnapshot, deployment: DeploymentState) -> AgentSnapshot:
    """The state in which the present pod of this deployment, if there is one, is an instance with the empty id."""
    newest = deployment.newest
    if deployment.acp_url is None or newest is None:
        return state
    return state.with_instance(
        InstanceState(
            deployment_id=deployment.id,
            instance_id="",
            agent_id=deployment.agent_id,
            acp_url=deployment.acp_url,
            rpc_path=deployment.rpc_path,
            health_path=deployment.health_path,
            status=deployment.status,
            status_reason=deployment.status_reason,
            status_changed_at=deployment.status_changed_at,
            registered_at=newest[0],
            registered_message_id=newest[1],
            created_at=deployment.created_at,
            ready_at=deployment.ready_at,
            probe_streak=deployment.probe_streak,
            failures=deployment.failures,
        )
    )


def at_address_of(deployment: DeploymentState, instance: InstanceState) -> DeploymentState:
    """The deployment with the address of this instance."""
    return replace(deployment, acp_url=instance.acp_url, rpc_path=instance.rpc_path, health_path=instance.health_path)


def announce_instance(state: AgentSnapshot, before: InstanceState | None, instance: InstanceState) -> AgentSnapshot:
    """Emit `instance.ready` if the instance became Ready or, while Ready, moved to another address."""
    if instance.status != "Ready":
        return state
    moved = before is not None and (before.acp_url, before.rpc_path) != (instance.acp_url, instance.rpc_path)
    if before is not None and before.status == "Ready" and not moved:
        return state
    data = InstanceReady(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=instance.deployment_id,
        instance_id=instance.name,
        acp_url=instance.acp_url,
        is_production=state.deployments[instance.deployment_id].is_production,
    )
    return emit(state, data, subject=instance.deployment_id)


def fail_instance(state: AgentSnapshot, instance: InstanceState, reason: str) -> AgentSnapshot:
    """Set this instance Failed, and its deployment with the last one that was Ready."""
    failed = replace(instance, status="Failed", status_reason=reason, status_changed_at=state.now)
    state = state.with_instance(failed)
    data = InstanceFailed(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=failed.deployment_id,
        instance_id=failed.name,
        reason=reason,
        is_production=state.deployments[failed.deployment_id].is_production,
    )
    return settle(emit(state, data, subject=failed.deployment_id), failed.deployment_id, reason)


def remove_instance(
    state: AgentSnapshot, deployment_id: str, instance_id: str, reason: str, at: Precedence
) -> AgentSnapshot:
    """Remove this instance, and set its deployment Failed if it was the last one that was Ready.

    Announcements up to `at` do not bring it back.
    """
    state = departed(state.without_instance(deployment_id, instance_id), deployment_id, instance_id, at)
    data = InstanceGone(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=deployment_id,
        instance_id=instance_id or None,
        reason=reason,
        is_production=state.deployments[deployment_id].is_production,
    )
    return settle(emit(state, data, subject=deployment_id), deployment_id, reason)


def departed(state: AgentSnapshot, deployment_id: str, instance_id: str, at: Precedence) -> AgentSnapshot:
    """The state that remembers that this instance is gone, since a message of this precedence."""
    return replace(state, departed={**state.departed, (deployment_id, instance_id): at})


def settle(state: AgentSnapshot, deployment_id: str, reason: str) -> AgentSnapshot:
    """The state in which the deployment's status and address follow from its instances.

    It is Ready while an instance is, at the address of the first of these by id. It is Failed, for this reason of its
    last instance, when none is Ready any more, or when it was Pending and no instance is.
    """
    deployment = state.deployments[deployment_id]
    own = state.instances.get(deployment_id, {})
    ready = [each for each in own.values() if each.status == "Ready"]
    if ready:
        deployment = at_address_of(deployment, min(ready, key=lambda each: each.instance_id))
        if deployment.status == "Ready":
            return state.with_deployment(deployment)
        return set_ready(state, deployment)
    if deployment.status == "Ready":
        return set_failed(state, deployment, f"none of its instances is Ready; the last one: {reason}")
    waiting = any(each.status == "Pending" for each in own.values())
    if deployment.status == "Failed" and deployment.ready_at is None and waiting:
        pending = replace(deployment, status="Pending", status_reason=UNPROVEN, status_changed_at=state.now)
        return state.with_deployment(pending)
    if deployment.status == "Pending" and own and not waiting:
        return set_failed(state, deployment, f"none of its instances became Ready; the last one: {reason}")
    return state
