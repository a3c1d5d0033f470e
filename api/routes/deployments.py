"""Deployments: creating them before their pods start, reading, promoting and deleting them."""

from typing import Annotated

from litestar import Response, delete, get, post
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.access import READ, needs
from api.http.lists import deployments_list, json_response
from api.http.parameters import (
    AnyRequest,
    Limit,
    OrderDirection,
    PageNumber,
    agent_uuid,
    caller,
    deployment_key,
    identity_of,
)
from api.http.preconditions import generation_headers
from api.http.problems import documented
from api.http.requests import (
    ConditionalChange,
    ConditionalChangeWithReason,
    JsonBody,
    NewDeploymentRequest,
    PromoteRequest,
)
from api.http.responses import DeletedAnswer, DeploymentAnswer
from api.resources import Injected, Resources
from services.agents.commands import create_deployment, delete_deployment
from services.agents.queries import (
    DEPLOYMENT_ORDER,
    DeploymentView,
    deployments_question,
    find_deployment,
    get_deployment,
    with_instances,
)
from services.domain.state import AgentSnapshot
from services.errors import PodiumError, UnknownDeployment
from services.promotion.promote import promote
from services.promotion.together import Promote, Promoted
from services.storage.database import in_transaction
from services.storage.pages import Page

COLLECTION = "/agents/{agent_id:str}/deployments"
ITEM = f"{COLLECTION}/{{deployment_id:str}}"

Order = Annotated[
    str, QueryParameter(description="The field that orders the list.", schema_extra={"enum": sorted(DEPLOYMENT_ORDER)})
]

Force = Annotated[bool, QueryParameter(description="Also if conversations with the deployment are open.")]


@post(
    COLLECTION,
    opt=needs("register", agents="path"),
    status_code=200,
    dto=JsonBody[NewDeploymentRequest],
    return_dto=None,
    operation_class=ConditionalChange,
    operation_id="create_deployment",
    responses=documented(404, 409, 410, 412, 413, 415),
)
async def create(
    agent_id: FromPath[str], data: JSONBody[NewDeploymentRequest], request: AnyRequest, resources: Injected
) -> Response[DeploymentAnswer]:
    """Create a deployment before its pod starts. It is Pending until a pod registers with its id."""
    uuid, change = agent_uuid(agent_id), caller(request)

    async def work(session: AsyncSession) -> DeploymentView:
        created = await create_deployment(session, uuid, data.command(), change)
        return await get_deployment(session, uuid, created.id, resources.terms)

    return _answer(await resources.change(uuid, work))


@get(COLLECTION, opt=READ, operation_id="list_deployments", responses=documented(404))
async def read_deployments(
    *,
    agent_id: FromPath[str],
    resources: Injected,
    limit: Limit = 50,
    page_number: PageNumber = 1,
    order_by: Order = "created_at",
    order_direction: OrderDirection = "desc",
) -> Response[list[DeploymentAnswer]]:
    """The agent's deployments that are not deleted, newest first."""
    uuid = agent_uuid(agent_id)
    page = Page(limit=limit, number=page_number, order_by=order_by, direction=order_direction)
    question = deployments_question(uuid, page, resources.terms)
    return json_response(await resources.list_of(uuid, question, deployments_list))


@get(ITEM, opt=READ, operation_id="get_deployment", responses=documented(404))
async def read_deployment(
    agent_id: FromPath[str], deployment_id: FromPath[str], resources: Injected
) -> Response[DeploymentAnswer]:
    """One deployment, deleted or not."""
    uuid, key = agent_uuid(agent_id), deployment_key(deployment_id)
    return _answer(
        await in_transaction(resources.reads, lambda session: get_deployment(session, uuid, key, resources.terms))
    )


@get(
    "/deployments/{deployment_id:str}",
    opt=needs("read", agents="answer"),
    operation_id="find_deployment",
    responses=documented(404),
)
async def read_deployment_by_id(
    deployment_id: FromPath[str], request: AnyRequest, resources: Injected
) -> Response[DeploymentAnswer]:
    """The deployment with this id, deleted or not. Ids are unique across agents."""
    key = deployment_key(deployment_id)
    view = await in_transaction(resources.reads, lambda session: find_deployment(session, key, resources.terms))
    if not identity_of(request).sees(view.deployment.agent_name):
        raise UnknownDeployment
    return _answer(view)


@post(
    f"{ITEM}/promote",
    opt=needs("promote", agents="path"),
    status_code=200,
    dto=JsonBody[PromoteRequest],
    return_dto=None,
    operation_class=ConditionalChangeWithReason,
    responses=documented(404, 409, 410, 412, 413, 415),
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
    change = caller(request, data.reason if data else None)
    uuid, key = agent_uuid(agent_id), deployment_key(deployment_id)

    made = await resources.cutovers.make(uuid, Promote(uuid, key, change))
    if isinstance(made, PodiumError):
        raise made
    if isinstance(made, Promoted):
        return _answer(await _view(resources, made))

    async def work(session: AsyncSession) -> tuple[AgentSnapshot, DeploymentView]:
        state = await promote(session, uuid, key, change)
        return state, await get_deployment(session, uuid, key, resources.terms)

    with resources.cutovers.alone(uuid):
        state, view = await resources.change(uuid, work)
    resources.agent_changes.changed([state])
    return _answer(view)


@delete(
    ITEM,
    opt=needs("promote", agents="path"),
    status_code=200,
    operation_class=ConditionalChange,
    operation_id="delete_deployment",
    responses=documented(404, 409, 412),
)
async def remove_deployment(
    *,
    agent_id: FromPath[str],
    deployment_id: FromPath[str],
    request: AnyRequest,
    resources: Injected,
    force: Force = False,
) -> DeletedAnswer:
    """Delete a preview; production cannot be deleted, and one with open conversations only by `force`. Idempotent."""
    uuid, key, change = agent_uuid(agent_id), deployment_key(deployment_id), caller(request)
    await resources.change(
        uuid, lambda session: delete_deployment(session, uuid, key, change, terms=resources.terms, force=force)
    )
    return DeletedAnswer(id=key, message=f"Deployment {key} is deleted.")


async def _view(resources: Resources, made: Promoted) -> DeploymentView:
    view = DeploymentView(made.deployment, made.periods, made.state.agent.generation)
    if not made.deployment.has_instances:
        return view
    return await in_transaction(resources.reads, lambda session: with_instances(session, view))


def _answer(view: DeploymentView) -> Response[DeploymentAnswer]:
    return Response(DeploymentAnswer.of(view), headers=generation_headers(view.generation))


ROUTES = [create, read_deployments, read_deployment, promote_deployment, remove_deployment]
LOOKUP_ROUTES = [read_deployment_by_id]
