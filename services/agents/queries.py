"""Reads of agents and deployments for the API."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, RowMapping, Select, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from services.domain.identity import EVERYBODY, Identity
from services.domain.state import AgentState, DeploymentState, InstanceState
from services.errors import AgentNotFound, DeploymentNotFound, InvalidRequest, UnknownDeployment
from services.identities.visibility import visible
from services.promotion.history import PERIODS, Period, periods_of
from services.routing.conversations import DEFAULT_TERMS, ConversationTerms
from services.routing.draining import OpenConversations, open_conversations_of
from services.storage.models import Agent, Deployment
from services.storage.pages import Page
from services.storage.store import AGENT_COLUMNS, DEPLOYMENTS, OWNER_GENERATION, load_instances

AGENT_ORDER = {"id": Agent.id, "name": Agent.name, "created_at": Agent.created_at, "updated_at": Agent.updated_at}
DEPLOYMENT_ORDER = {
    "id": Deployment.id,
    "created_at": Deployment.created_at,
    "promoted_at": Deployment.promoted_at,
    "status": Deployment.status,
}

# As in the indexes for lists, and as a literal, so that the planner can match it. The index by name has `deleted_at`.
_NOT_DELETED: ColumnElement[bool] = literal_column("agents.status <> 'Deleted'")
# Agents, each with the address of its production deployment.
AGENTS = select(*AGENT_COLUMNS, Deployment.acp_url.label("production_acp_url")).outerjoin(
    Deployment, Deployment.id == Agent.production_deployment_id
)
_DEPLOYMENTS = DEPLOYMENTS.add_columns(PERIODS, OWNER_GENERATION.label("agent_generation"))


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent, and the address that serves it now; None if nothing does."""

    agent: AgentState
    acp_url: str | None


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A deployment, its last periods in production, newest first, and the generation of its agent."""

    deployment: DeploymentState
    production_periods: tuple[Period, ...]
    generation: int
    instances: tuple[InstanceState, ...] | None = None
    """Its pods, if it has instances; lists do not read them."""
    draining: OpenConversations | None = None
    """The open conversations of a deployment that has stopped serving; None once there are none left."""


async def get_agent(session: AsyncSession, agent_id: UUID) -> AgentView:
    """The agent, deleted or not. Raises `AgentNotFound`."""
    views = await _views(session, AGENTS.where(Agent.id == agent_id))
    if not views:
        raise AgentNotFound
    return views[0]


async def get_agent_by_name(session: AsyncSession, name: str) -> AgentView:
    """The agent of this name that is not deleted. Raises `AgentNotFound`."""
    views = await _views(session, AGENTS.where(Agent.name == name, Agent.deleted_at.is_(None)))
    if not views:
        raise AgentNotFound
    return views[0]


async def list_agents(session: AsyncSession, page: Page, identity: Identity = EVERYBODY) -> list[AgentView]:
    """One page of the agents that are not deleted and that the identity sees.

    Raises `InvalidRequest` for an unknown order.
    """
    agents = AGENTS if identity.agents is None else AGENTS.where(visible(Agent.name, identity))
    if page.after is not None:
        query = agents.where(_NOT_DELETED, Agent.id > page.after)
        return await _views(session, query.order_by(Agent.id).limit(page.limit))
    query = agents.where(Agent.deleted_at.is_(None) if page.order_by == "name" else _NOT_DELETED)
    order = _ordering(AGENT_ORDER, page)
    tie = Agent.id.asc() if page.direction == "asc" else Agent.id.desc()
    return await _views(session, query.order_by(order, tie).limit(page.limit).offset(page.offset))


async def get_deployment(
    session: AsyncSession, agent_id: UUID, deployment_id: str, terms: ConversationTerms = DEFAULT_TERMS
) -> DeploymentView:
    """The agent's deployment, deleted or not. Raises `AgentNotFound`, `DeploymentNotFound`."""
    query = _DEPLOYMENTS.where(Deployment.id == deployment_id, Deployment.agent_id == agent_id)
    row = (await session.execute(query)).mappings().one_or_none()
    if row is None:
        await _require_agent(session, agent_id)
        raise DeploymentNotFound
    [view] = await _with_conversations(session, [_deployment_view(row)], terms)
    return await with_instances(session, view)


async def find_deployment(
    session: AsyncSession, deployment_id: str, terms: ConversationTerms = DEFAULT_TERMS
) -> DeploymentView:
    """The deployment with this id, of any agent, deleted or not. Raises `UnknownDeployment`."""
    row = (await session.execute(_DEPLOYMENTS.where(Deployment.id == deployment_id))).mappings().one_or_none()
    if row is None:
        raise UnknownDeployment
    [view] = await _with_conversations(session, [_deployment_view(row)], terms)
    return await with_instances(session, view)


async def list_deployments(
    session: AsyncSession, agent_id: UUID, page: Page, terms: ConversationTerms = DEFAULT_TERMS
) -> list[DeploymentView]:
    """One page of the agent's deployments that are not deleted. Raises `AgentNotFound`, `InvalidRequest`."""
    order = _ordering(DEPLOYMENT_ORDER, page)
    tie = Deployment.id.asc() if page.direction == "asc" else Deployment.id.desc()
    rows = await session.execute(
        _DEPLOYMENTS.where(Deployment.agent_id == agent_id, Deployment.expires_at.is_(None))
        .order_by(order, tie)
        .limit(page.limit)
        .offset(page.offset)
    )
    deployments = [_deployment_view(row) for row in rows.mappings()]
    if not deployments:
        await _require_agent(session, agent_id)
    return await _with_conversations(session, deployments, terms)


def _ordering(allowed: Mapping[str, InstrumentedAttribute[Any]], page: Page) -> ColumnElement[Any]:
    column = allowed.get(page.order_by)
    if column is None:
        raise InvalidRequest(f"order_by must be one of {', '.join(sorted(allowed))}.", field="order_by")
    ordered = column.asc() if page.direction == "asc" else column.desc()
    # Only for nullable columns: an index read backwards returns NULLs first, so NULLS LAST would rule it out.
    return ordered.nulls_last() if column.expression.nullable else ordered


async def _require_agent(session: AsyncSession, agent_id: UUID) -> None:
    if await session.scalar(select(Agent.id).where(Agent.id == agent_id)) is None:
        raise AgentNotFound


async def _views(session: AsyncSession, query: Select[Any]) -> list[AgentView]:
    return [agent_view(row) for row in (await session.execute(query)).mappings()]


def agent_view(row: Mapping[str, Any] | RowMapping) -> AgentView:
    """The agent in a row of `AGENTS`."""
    columns = dict(row)
    production_acp_url = columns.pop("production_acp_url")
    agent = AgentState(**columns)
    legacy = agent.legacy_acp_url if agent.deleted_at is None else None
    return AgentView(agent, production_acp_url if agent.production_deployment_id is not None else legacy)


async def _with_conversations(
    session: AsyncSession, views: list[DeploymentView], terms: ConversationTerms
) -> list[DeploymentView]:
    """The same views; those of draining deployments with their open conversations."""
    draining = [each.deployment.id for each in views if each.deployment.draining_since is not None]
    if not draining:
        return views
    still_open = await open_conversations_of(session, draining, terms)
    return [replace(each, draining=still_open.get(each.deployment.id)) for each in views]


async def with_instances(session: AsyncSession, view: DeploymentView) -> DeploymentView:
    """The same view, with the pods of the deployment if it has instances."""
    if not view.deployment.has_instances:
        return view
    instances = await load_instances(session, [view.deployment])
    return replace(view, instances=tuple(instances[view.deployment.id].values()))


def _deployment_view(row: RowMapping) -> DeploymentView:
    columns = dict(row)
    periods, generation = periods_of(columns.pop("periods")), columns.pop("agent_generation")
    return DeploymentView(DeploymentState(**columns), periods, generation)
