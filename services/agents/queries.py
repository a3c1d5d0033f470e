"""Reads of agents and deployments for the API."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, RowMapping, Select, bindparam, case, literal_column, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.identity import EVERYBODY, Identity
from services.domain.state import AgentState, DeploymentState, InstanceState
from services.errors import AgentNotFound, DeploymentNotFound, InvalidRequest, UnknownDeployment
from services.events.log import CURSOR
from services.identities.visibility import seen_parameters, visible
from services.promotion.history import PERIODS, Period, periods_of
from services.routing.conversations import DEFAULT_TERMS, ConversationTerms
from services.routing.draining import DRAINING, OpenConversations, conversations_of
from services.storage.models import Agent, Deployment
from services.storage.pages import Direction, Page
from services.storage.shared_lists import ListStatement, Question
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
# Agents, each with the address that serves it now.
AGENTS = select(
    *AGENT_COLUMNS,
    case(
        (Agent.production_deployment_id.is_not(None), Deployment.acp_url),
        (Agent.deleted_at.is_(None), Agent.legacy_acp_url),
    ).label("acp_url"),
).outerjoin(Deployment, Deployment.id == Agent.production_deployment_id)
_DEPLOYMENTS = DEPLOYMENTS.add_columns(PERIODS, OWNER_GENERATION.label("agent_generation"), DRAINING)
# Of lists, the statements for each order and direction are made once.
_SHAPES = 64
_LIMIT, _OFFSET = bindparam("limit", type_=BigInteger), bindparam("offset", type_=BigInteger)
# One that sees some agents only: which ones is in the parameters of the statement.
_OF_SOME = replace(EVERYBODY, agents=())


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


def agents_question(page: Page, identity: Identity) -> Question:
    """Asks for a page of the agents that are not deleted and that the identity sees: rows of `AGENTS`.

    Each row also has the cursor of events, after which every change has its event that is not in the page. An empty
    page is one row, without an id. Raises `InvalidRequest` for an unknown order.
    """
    parameters = {**_parameters(page), **seen_parameters(identity)}
    return _agents_statement(*_shape(page, identity)).question(parameters)


def _shape(page: Page, identity: Identity) -> tuple[str, Direction, bool, bool]:
    if page.after is not None:
        return "id", "asc", True, identity.agents is not None
    return page.order_by, page.direction, False, identity.agents is not None


@lru_cache(_SHAPES)
def _agents_statement(order_by: str, direction: Direction, is_behind: bool, of_some: bool) -> ListStatement:  # noqa: FBT001 - a shape
    agents = AGENTS.where(visible(Agent.name, _OF_SOME)) if of_some else AGENTS
    agents = agents.where(Agent.deleted_at.is_(None) if order_by == "name" else _NOT_DELETED)
    agents = agents.order_by(*_ordering(AGENT_ORDER, order_by, direction)).limit(_LIMIT)
    page = agents.where(Agent.id > bindparam("after")) if is_behind else agents.offset(_OFFSET)
    rows, now = page.subquery("page"), select(CURSOR.label("cursor")).subquery("now")
    query = select(now.c.cursor, rows).select_from(now.outerjoin(rows, true()))
    return ListStatement(query.order_by(*_ordering(dict(rows.c), order_by, direction)))


async def get_deployment(
    session: AsyncSession, agent_id: UUID, deployment_id: str, terms: ConversationTerms = DEFAULT_TERMS
) -> DeploymentView:
    """The agent's deployment, deleted or not. Raises `AgentNotFound`, `DeploymentNotFound`."""
    query = _DEPLOYMENTS.where(Deployment.id == deployment_id, Deployment.agent_id == agent_id)
    row = (await session.execute(query, terms.parameters())).mappings().one_or_none()
    if row is None:
        await _require_agent(session, agent_id)
        raise DeploymentNotFound
    return await with_instances(session, _deployment_view(row))


async def find_deployment(
    session: AsyncSession, deployment_id: str, terms: ConversationTerms = DEFAULT_TERMS
) -> DeploymentView:
    """The deployment with this id, of any agent, deleted or not. Raises `UnknownDeployment`."""
    query = _DEPLOYMENTS.where(Deployment.id == deployment_id)
    row = (await session.execute(query, terms.parameters())).mappings().one_or_none()
    if row is None:
        raise UnknownDeployment
    return await with_instances(session, _deployment_view(row))


async def list_deployments(
    session: AsyncSession, agent_id: UUID, page: Page, terms: ConversationTerms = DEFAULT_TERMS
) -> list[DeploymentView]:
    """One page of the agent's deployments that are not deleted. Raises `AgentNotFound`, `InvalidRequest`."""
    query = _deployments_page(page.order_by, page.direction)
    rows = await session.execute(query, {"agent_id": agent_id, **_parameters(page), **terms.parameters()})
    deployments = [_deployment_view(row) for row in rows.mappings()]
    if not deployments:
        await _require_agent(session, agent_id)
    return deployments


def deployments_question(agent_id: UUID, page: Page, terms: ConversationTerms) -> Question:
    """Asks for the same page; no row if the agent does not exist."""
    statement = _deployments_statement(page.order_by, page.direction)
    return statement.question({"agent_id": agent_id, **_parameters(page), **terms.parameters()})


@lru_cache(_SHAPES)
def _deployments_page(order_by: str, direction: Direction) -> Select[Any]:
    return (
        _DEPLOYMENTS.where(Deployment.agent_id == bindparam("agent_id"), Deployment.expires_at.is_(None))
        .order_by(*_ordering(DEPLOYMENT_ORDER, order_by, direction))
        .limit(_LIMIT)
        .offset(_OFFSET)
    )


@lru_cache(_SHAPES)
def _deployments_statement(order_by: str, direction: Direction) -> ListStatement:
    return ListStatement(_deployments_page(order_by, direction))


def _parameters(page: Page) -> dict[str, Any]:
    behind = {"offset": page.offset} if page.after is None else {"after": page.after}
    return {"limit": page.limit, **behind}


def _ordering(columns: Mapping[str, Any], order_by: str, direction: Direction) -> list[ColumnElement[Any]]:
    column = columns.get(order_by)
    if column is None:
        raise InvalidRequest(f"order_by must be one of {', '.join(sorted(columns))}.", field="order_by")
    ordered = column.asc() if direction == "asc" else column.desc()
    # Only for nullable columns: an index read backwards returns NULLs first, so NULLS LAST would rule it out.
    by_value = ordered.nulls_last() if column.expression.nullable else ordered
    return [by_value, columns["id"].asc() if direction == "asc" else columns["id"].desc()]


async def _require_agent(session: AsyncSession, agent_id: UUID) -> None:
    if await session.scalar(select(Agent.id).where(Agent.id == agent_id)) is None:
        raise AgentNotFound


async def _views(session: AsyncSession, query: Select[Any], **parameters: Any) -> list[AgentView]:  # noqa: ANN401 - of SQL
    return [agent_view(row) for row in (await session.execute(query, parameters)).mappings()]


def agent_view(row: Mapping[str, Any] | RowMapping) -> AgentView:
    """The agent in a row of `AGENTS`."""
    columns = dict(row)
    acp_url = columns.pop("acp_url")
    return AgentView(AgentState(**columns), acp_url)


async def with_instances(session: AsyncSession, view: DeploymentView) -> DeploymentView:
    """The same view, with the pods of the deployment if it has instances."""
    if not view.deployment.has_instances:
        return view
    instances = await load_instances(session, [view.deployment])
    return replace(view, instances=tuple(instances[view.deployment.id].values()))


def _deployment_view(row: Mapping[str, Any] | RowMapping) -> DeploymentView:
    """The deployment in a row of `DEPLOYMENTS`, with the columns that the API shows."""
    columns = dict(row)
    periods, generation = periods_of(columns.pop("periods")), columns.pop("agent_generation")
    draining = conversations_of(columns.pop("draining"))
    return DeploymentView(DeploymentState(**columns), periods, generation, draining=draining)
