"""Agents: reading, changing and deleting them, and reading the ledger of what served."""

from typing import Annotated
from uuid import UUID

from litestar import Response, delete, get, patch
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.access import READ, needs
from api.http.lists import agents_page, json_response, promotions_list
from api.http.parameters import (
    AnyRequest,
    Limit,
    OrderDirection,
    PageNumber,
    after_uuid,
    agent_name,
    agent_uuid,
    caller,
    identity_of,
    moment,
)
from api.http.preconditions import generation_headers
from api.http.problems import documented
from api.http.requests import ChangeAgentRequest, ConditionalChange, JsonBody
from api.http.responses import AgentAnswer, DeletedAnswer, PromotionAnswer
from api.resources import Injected
from services.agents.commands import change_agent, delete_agent
from services.agents.queries import AGENT_ORDER, agents_question, get_agent, get_agent_by_name
from services.promotion.history import Change, history_question, served_at
from services.storage.database import in_transaction
from services.storage.pages import Page

CURSOR_HEADER = "x-podium-cursor"

After = Annotated[
    str | None,
    QueryParameter(
        description="Only agents after this id, in id order: pages without gaps.", schema_extra={"format": "uuid"}
    ),
]
Order = Annotated[
    str, QueryParameter(description="The field that orders the list.", schema_extra={"enum": sorted(AGENT_ORDER)})
]
# Podium has neither tasks nor a search in cards, but clients of the existing SDK may send these filters.
IgnoredFilter = Annotated[
    str | None, QueryParameter(description="Accepted for clients of the existing SDK, and ignored.")
]


@get("/agents", opt=needs("read", agents="answer"), operation_id="list_agents", responses=documented())
async def read_agents(
    *,
    request: AnyRequest,
    resources: Injected,
    limit: Limit = 50,
    page_number: PageNumber = 1,
    order_by: Order = "created_at",
    order_direction: OrderDirection = "desc",
    after: After = None,
    task_id: IgnoredFilter = None,  # noqa: ARG001 - documented, and accepted by check_request
    agent_card_metadata: IgnoredFilter = None,  # noqa: ARG001 - as task_id
) -> Response[list[AgentAnswer]]:
    """Living agents, newest first. Every change that is not in this page has an event after `x-podium-cursor`."""
    page = Page(limit=limit, number=page_number, order_by=order_by, direction=order_direction, after=after_uuid(after))
    cursor, answer = await resources.lists.read(agents_question(page, identity_of(request)), agents_page)
    return json_response(answer, {CURSOR_HEADER: cursor})


@get("/agents/{agent_id:str}", opt=READ, operation_id="get_agent", responses=documented(404))
async def read_agent(agent_id: FromPath[str], resources: Injected) -> Response[AgentAnswer]:
    """One agent, deleted or not."""
    uuid = agent_uuid(agent_id)
    return _answer(AgentAnswer.of_view(await resources.agents.by_id(uuid)))


@get(
    "/agents/name/{name:str}",
    opt=READ,
    operation_id="get_agent_by_name",
    responses=documented(404),
)
async def read_agent_by_name(name: FromPath[str], resources: Injected) -> Response[AgentAnswer]:
    """The living agent of this name."""
    valid_name = agent_name(name)
    return _answer(AgentAnswer.of_view(await resources.agents.by_name(valid_name)))


@patch(
    "/agents/{agent_id:str}",
    opt=needs("promote", agents="path"),
    dto=JsonBody[ChangeAgentRequest],
    return_dto=None,
    operation_class=ConditionalChange,
    responses=documented(404, 410, 412, 413, 415),
)
async def update_agent(
    agent_id: FromPath[str], data: JSONBody[ChangeAgentRequest], request: AnyRequest, resources: Injected
) -> Response[AgentAnswer]:
    """Set the description, automatic promotion and rollback, and the parameters of health probes."""
    uuid, change = agent_uuid(agent_id), caller(request)
    state = await resources.change(uuid, lambda session: change_agent(session, uuid, data.command(), change))
    return _answer(AgentAnswer.of_state(state))


@delete(
    "/agents/{agent_id:str}",
    opt=needs("admin", agents="path"),
    status_code=200,
    operation_class=ConditionalChange,
    operation_id="delete_agent",
    responses=documented(404, 412),
)
async def remove_agent(agent_id: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Delete an agent with all its deployments, and free its name. Idempotent."""
    uuid, change = agent_uuid(agent_id), caller(request)
    await resources.change(uuid, lambda session: delete_agent(session, uuid, change))
    return DeletedAnswer(id=str(uuid), message=f"Agent {uuid} is deleted.")


@delete(
    "/agents/name/{name:str}",
    opt=needs("admin", agents="path"),
    status_code=200,
    operation_class=ConditionalChange,
    operation_id="delete_agent_by_name",
    responses=documented(404, 412),
)
async def remove_agent_by_name(name: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Delete the living agent of this name."""
    valid_name, change = agent_name(name), caller(request)

    async def work(session: AsyncSession) -> UUID:
        agent_id = (await get_agent_by_name(session, valid_name)).agent.id
        await delete_agent(session, agent_id, change)
        return agent_id

    agent_id = await resources.change(valid_name, work)
    return DeletedAnswer(id=str(agent_id), message=f"Agent {valid_name} is deleted.")


@get(
    "/agents/{agent_id:str}/promotions",
    opt=READ,
    operation_id="list_promotions",
    responses=documented(404),
)
async def read_promotions(
    agent_id: FromPath[str],
    resources: Injected,
    limit: Limit = 50,
    page_number: PageNumber = 1,
    at: Annotated[
        str | None,
        QueryParameter(
            description="ISO 8601: only the row that was current at this time; 404 before the first one.",
            schema_extra={"format": "date-time"},
        ),
    ] = None,
) -> Response[list[PromotionAnswer]]:
    """The ledger of what served, newest first: each change with its actor, time, reason, before, after and duration."""
    uuid, served_when = agent_uuid(agent_id), moment(at, field="at")
    if served_when is not None:

        async def work(session: AsyncSession) -> Change:
            await get_agent(session, uuid)
            return await served_at(session, uuid, served_when)

        return Response([PromotionAnswer.of(await in_transaction(resources.reads, work))])
    page = Page(limit=limit, number=page_number)
    question = history_question(uuid, limit=limit, offset=page.offset)
    return json_response(await resources.list_of(uuid, question, promotions_list))


def _answer(agent: AgentAnswer) -> Response[AgentAnswer]:
    return Response(agent, headers=generation_headers(agent.generation))


ROUTES = [
    read_agents,
    read_agent,
    read_agent_by_name,
    update_agent,
    remove_agent,
    remove_agent_by_name,
    read_promotions,
]
