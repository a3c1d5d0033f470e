"""Agents: reading, changing and deleting them, and reading the ledger of what served."""

from typing import Annotated
from uuid import UUID

from litestar import Response, delete, get, patch
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.parameters import (
    AnyRequest,
    Limit,
    OrderDirection,
    PageNumber,
    agent_name,
    agent_uuid,
    caller,
    moment,
)
from api.http.preconditions import generation_header
from api.http.problems import documented
from api.http.requests import ChangeAgentRequest, JsonBody
from api.http.responses import AgentAnswer, DeletedAnswer, PromotionAnswer
from api.resources import Injected
from services.agents.commands import change_agent, delete_agent
from services.agents.queries import AgentView, get_agent, get_agent_by_name, list_agents
from services.events.log import event_cursor
from services.promotion.history import Change, history, served_at
from services.storage.database import in_transaction
from services.storage.pages import Page

CURSOR_HEADER = "x-podium-cursor"

After = Annotated[
    UUID | None, QueryParameter(description="Only agents after this id, in id order: pages without gaps.")
]


@get("/agents", responses=documented())
async def read_agents(
    *,
    resources: Injected,
    limit: Limit = 50,
    page_number: PageNumber = 1,
    order_by: FromQuery[str] = "created_at",
    order_direction: OrderDirection = "desc",
    after: After = None,
) -> Response[list[AgentAnswer]]:
    """Living agents, newest first. Every change that is not in this page has an event after `x-podium-cursor`."""
    page = Page(limit=limit, number=page_number, order_by=order_by, direction=order_direction, after=after)

    async def work(session: AsyncSession) -> tuple[str, list[AgentView]]:
        return await event_cursor(session), await list_agents(session, page)

    cursor, views = await in_transaction(resources.reads, work)
    return Response([AgentAnswer.of_view(view) for view in views], headers={CURSOR_HEADER: cursor})


@get("/agents/{agent_id:str}", responses=documented(404))
async def read_agent(agent_id: FromPath[str], resources: Injected) -> Response[AgentAnswer]:
    """One agent, deleted or not."""
    wanted = agent_uuid(agent_id)
    view = await in_transaction(resources.reads, lambda session: get_agent(session, wanted))
    return _answer(AgentAnswer.of_view(view))


@get("/agents/name/{name:str}", responses=documented(404))
async def read_agent_by_name(name: FromPath[str], resources: Injected) -> Response[AgentAnswer]:
    """The living agent of this name."""
    wanted = agent_name(name)
    view = await in_transaction(resources.reads, lambda session: get_agent_by_name(session, wanted))
    return _answer(AgentAnswer.of_view(view))


@patch(
    "/agents/{agent_id:str}",
    dto=JsonBody[ChangeAgentRequest],
    return_dto=None,
    responses=documented(404, 410),
)
async def update_agent(
    agent_id: FromPath[str], data: JSONBody[ChangeAgentRequest], resources: Injected
) -> Response[AgentAnswer]:
    """Set the description, automatic promotion and rollback, and the parameters of health probes."""
    wanted = agent_uuid(agent_id)
    state = await resources.change(wanted, lambda session: change_agent(session, wanted, data.command()))
    return _answer(AgentAnswer.of_state(state))


@delete("/agents/{agent_id:str}", status_code=200, responses=documented(404))
async def remove_agent(agent_id: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Delete an agent with all its deployments, and free its name. Idempotent."""
    wanted, asking = agent_uuid(agent_id), caller(request, resources.actor)
    await resources.change(wanted, lambda session: delete_agent(session, wanted, asking))
    return DeletedAnswer(id=str(wanted), message=f"Agent {wanted} is deleted.")


@delete("/agents/name/{name:str}", status_code=200, responses=documented(404))
async def remove_agent_by_name(name: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Delete the living agent of this name."""
    wanted, asking = agent_name(name), caller(request, resources.actor)

    async def work(session: AsyncSession) -> UUID:
        agent_id = (await get_agent_by_name(session, wanted)).agent.id
        await delete_agent(session, agent_id, asking)
        return agent_id

    agent_id = await resources.change(wanted, work)
    return DeletedAnswer(id=str(agent_id), message=f"Agent {wanted} is deleted.")


@get("/agents/{agent_id:str}/promotions", responses=documented(404))
async def read_promotions(
    agent_id: FromPath[str],
    resources: Injected,
    limit: Limit = 50,
    page_number: PageNumber = 1,
    at: Annotated[
        str | None,
        QueryParameter(description="ISO 8601: only the row that was current at this time; 404 before the first one."),
    ] = None,
) -> list[PromotionAnswer]:
    """The ledger of what served, newest first: each change with its actor, time, reason, before, after and duration."""
    wanted, then = agent_uuid(agent_id), moment(at, field="at")
    offset = Page(limit=limit, number=page_number).offset

    async def work(session: AsyncSession) -> list[Change]:
        await get_agent(session, wanted)
        if then is not None:
            return [await served_at(session, wanted, then)]
        return await history(session, wanted, limit=limit, offset=offset)

    return [PromotionAnswer.of(row) for row in await in_transaction(resources.reads, work)]


def _answer(agent: AgentAnswer) -> Response[AgentAnswer]:
    return Response(agent, headers=generation_header(agent.generation))


ROUTES = [
    read_agents,
    read_agent,
    read_agent_by_name,
    update_agent,
    remove_agent,
    remove_agent_by_name,
    read_promotions,
]
