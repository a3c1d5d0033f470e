"""Deployments: creating them before their pods start, reading, promoting and deleting them."""

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.parameters import AnyRequest, Limit, OrderDirection, PageNumber, agent_uuid, caller, deployment_key
from api.http.preconditions import generation_header
from api.http.problems import documented
from api.http.requests import ConditionalChange, JsonBody, NewDeploymentRequest, PromoteRequest
from api.http.responses import DeletedAnswer, DeploymentAnswer
from api.resources import Injected
from services.agents.commands import create_deployment, delete_deployment
from services.agents.queries import DeploymentView, find_deployment, get_deployment, list_deployments
from services.domain.state import AgentSnapshot
from services.promotion.promote import promote
from services.storage.database import in_transaction
from services.storage.pages import Page

COLLECTION = "/agents/{agent_id:str}/deployments"
ITEM = f"{COLLECTION}/{{deployment_id:str}}"


@post(
    COLLECTION,
    status_code=200,
    dto=JsonBody[NewDeploymentRequest],
    return_dto=None,
    responses=documented(404, 409, 410),
)
async def create(
    agent_id: FromPath[str], data: JSONBody[NewDeploymentRequest], resources: Injected
) -> DeploymentAnswer:
    """Create a deployment before its pod starts. It is Pending until a pod registers with its id."""
    wanted = agent_uuid(agent_id)

    async def work(session: AsyncSession) -> DeploymentView:
        created = await create_deployment(session, wanted, data.command())
        return await get_deployment(session, wanted, created.id)

    view = await resources.change(wanted, work)
    return DeploymentAnswer.of(view)


@get(COLLECTION, responses=documented(404))
async def read_deployments(
    *,
    agent_id: FromPath[str],
    resources: Injected,
    limit: Limit = 50,
    page_number: PageNumber = 1,
    order_by: FromQuery[str] = "created_at",
    order_direction: OrderDirection = "desc",
) -> list[DeploymentAnswer]:
    """The agent's deployments that are not deleted, newest first."""
    wanted = agent_uuid(agent_id)
    page = Page(limit=limit, number=page_number, order_by=order_by, direction=order_direction)
    views = await in_transaction(resources.reads, lambda session: list_deployments(session, wanted, page))
    return [DeploymentAnswer.of(view) for view in views]


@get(ITEM, responses=documented(404))
async def read_deployment(
    agent_id: FromPath[str], deployment_id: FromPath[str], resources: Injected
) -> DeploymentAnswer:
    """One deployment, deleted or not."""
    wanted, key = agent_uuid(agent_id), deployment_key(deployment_id)
    view = await in_transaction(resources.reads, lambda session: get_deployment(session, wanted, key))
    return DeploymentAnswer.of(view)


@get("/deployments/{deployment_id:str}", responses=documented(404))
async def read_deployment_by_id(deployment_id: FromPath[str], resources: Injected) -> DeploymentAnswer:
    """The deployment with this id, deleted or not. Ids are unique across agents."""
    key = deployment_key(deployment_id)
    return DeploymentAnswer.of(await in_transaction(resources.reads, lambda session: find_deployment(session, key)))


@post(
    f"{ITEM}/promote",
    status_code=200,
    dto=JsonBody[PromoteRequest],
    return_dto=None,
    operation_class=ConditionalChange,
    responses=documented(404, 409, 410, 412),
)
async def promote_deployment(
    agent_id: FromPath[str],
    deployment_id: FromPath[str],
    request: AnyRequest,
    resources: Injected,
    data: JSONBody[PromoteRequest | None] = None,
) -> Response[DeploymentAnswer]:
    """Promote a Ready deployment to production; with If-Match only if the generation is still the one you read.

    Every RPC sent after the answer reaches this deployment. Nothing changes if it is already in production.
    """
    asking = caller(request, resources.actor, data.reason if data else None)
    wanted, key = agent_uuid(agent_id), deployment_key(deployment_id)

    async def work(session: AsyncSession) -> tuple[AgentSnapshot, DeploymentView]:
        return await promote(session, wanted, key, asking), await get_deployment(session, wanted, key)

    state, view = await resources.change(wanted, work)
    return Response(DeploymentAnswer.of(view), headers=generation_header(state.agent.generation))


@delete(ITEM, status_code=200, responses=documented(404, 409))
async def remove_deployment(
    agent_id: FromPath[str], deployment_id: FromPath[str], resources: Injected
) -> DeletedAnswer:
    """Delete a preview; production cannot be deleted. Idempotent."""
    wanted, key = agent_uuid(agent_id), deployment_key(deployment_id)
    await resources.change(wanted, lambda session: delete_deployment(session, wanted, key))
    return DeletedAnswer(id=key, message=f"Deployment {key} is deleted.")


ROUTES = [create, read_deployments, read_deployment, promote_deployment, remove_deployment]
LOOKUP_ROUTES = [read_deployment_by_id]
