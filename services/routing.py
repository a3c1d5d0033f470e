"""Where an RPC goes: read for each call, so that a promote holds for every call sent after its reply."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.fields import ErrorStyle
from services.errors import (
    AgentDeletedError,
    AgentNotFound,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentUnavailable,
    NothingServes,
)
from services.models import Agent, Deployment


@dataclass(frozen=True, slots=True)
class Route:
    """One address to dial: of a deployment, or (`deployment_id` None) of a legacy agent."""

    agent_id: UUID
    generation: int
    deployment_id: str | None
    acp_url: str
    rpc_path: str
    error_style: ErrorStyle

    @property
    def rpc_url(self) -> str:
        """Where JSON-RPC goes: address and path joined by exactly one slash."""
        return f"{self.acp_url.rstrip('/')}/{self.rpc_path.lstrip('/')}"


_COLUMNS = (
    Agent.id.label("agent_id"),
    Agent.name.label("agent_name"),
    Agent.deleted_at,
    Agent.generation,
    Agent.legacy_acp_url,
    Agent.legacy_rpc_path,
    Agent.legacy_error_style,
    Deployment.id.label("deployment_id"),
    Deployment.status,
    Deployment.status_reason,
    Deployment.expires_at,
    Deployment.acp_url,
    Deployment.rpc_path,
    Deployment.error_style,
)
_PRODUCTION = select(*_COLUMNS).outerjoin(Deployment, Deployment.id == Agent.production_deployment_id)


async def route_to_agent(session: AsyncSession, agent_id: UUID) -> Route:
    """What serves the agent now.

    Raises `AgentNotFound`, `AgentDeletedError`, `NothingServes`, `DeploymentUnavailable`.
    """
    return await _production(session, _PRODUCTION.where(Agent.id == agent_id))


async def route_to_name(session: AsyncSession, name: str) -> Route:
    """What serves the living agent of this name now; raises as `route_to_agent` does."""
    return await _production(session, _PRODUCTION.where(Agent.name == name, Agent.deleted_at.is_(None)))


async def route_to_deployment(session: AsyncSession, agent_id: UUID, deployment_id: str) -> Route:
    """One living deployment of the agent. Raises 404, 410 or `DeploymentUnavailable` in that order."""
    own = (Deployment.agent_id == Agent.id) & (Deployment.id == deployment_id)
    row = (
        await session.execute(select(*_COLUMNS).outerjoin(Deployment, own).where(Agent.id == agent_id))
    ).one_or_none()
    if row is None:
        raise AgentNotFound
    if row.deployment_id is None:
        raise DeploymentNotFound
    if row.deleted_at is not None:
        raise AgentDeletedError().in_style(row.error_style)
    if row.expires_at is not None:
        raise DeploymentDeletedError().in_style(row.error_style)
    return _deployment_route(row)


async def _production(session: AsyncSession, query: Select[*tuple[Any, ...]]) -> Route:
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise AgentNotFound
    if row.deleted_at is not None:
        raise AgentDeletedError
    if row.deployment_id is not None:
        return _deployment_route(row)
    if row.legacy_acp_url is None:
        raise NothingServes(
            f"Nothing serves agent {row.agent_name} yet: register a pod of it, or promote one of its deployments."
        )
    return Route(row.agent_id, row.generation, None, row.legacy_acp_url, row.legacy_rpc_path, row.legacy_error_style)


def _deployment_route(row: Row[*tuple[Any, ...]]) -> Route:
    if row.status != "Ready":
        because = f": {row.status_reason}" if row.status_reason else ""
        raise DeploymentUnavailable(
            f"Deployment {row.deployment_id} of agent {row.agent_name} is {row.status}{because}."
        ).in_style(row.error_style)
    return Route(row.agent_id, row.generation, row.deployment_id, row.acp_url, row.rpc_path, row.error_style)
