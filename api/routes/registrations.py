"""Registrations: registering a pod or a build over HTTP, and reading the outcomes of past registrations."""

from litestar import Response, get, post
from litestar.params import FromPath, JSONBody
from pydantic import BaseModel, ConfigDict

from api.http.access import READ, needs
from api.http.lists import json_response, registrations_list
from api.http.parameters import (
    AgentFilter,
    AnyRequest,
    Limit,
    PageNumber,
    agent_filter,
    agent_uuid,
    identity_of,
    traceparent,
)
from api.http.preconditions import generation_headers
from api.http.problems import documented
from api.http.requests import JsonBody
from api.http.responses import AgentAnswer, RegisteredAgentAnswer, RegistrationAnswer
from api.resources import Injected, Resources
from contracts.messages import DeregisterInstanceRequest, RegisterAgentRequest, RegisterBuildRequest
from services.api_keys import agent_api_key
from services.domain.announcement import Announcement, Rejected
from services.domain.state import AgentSnapshot
from services.errors import AgentNotFound
from services.registration.batch import Decided, Incoming, Terms, register_batch
from services.registration.inbox import Lifetime, registrations_question
from services.storage.pages import Page


class DeregisteredAnswer(BaseModel):
    """The instance that gets no further calls."""

    model_config = ConfigDict(frozen=True)

    deployment_id: str
    instance_id: str


@post(
    "/agents/register",
    status_code=200,
    dto=JsonBody[RegisterAgentRequest],
    return_dto=None,
    opt=needs("register", agents="body", agent_key=True),
    operation_id="register_agent",
    responses=documented(404, 409, 410, 413, 415),
)
async def register(
    data: JSONBody[RegisterAgentRequest], request: AnyRequest, resources: Injected
) -> Response[RegisteredAgentAnswer]:
    """Register a pod: an agent, or one version of it, can be reached at this address.

    The status is also 200 if a newer registration was applied before, or if production does not change. The answer
    contains the key with which the agent's pods can register again.
    """
    state = await _register(resources, data, request)
    key = agent_api_key(resources.settings.secret_key.get_secret_value(), state.agent.id)
    answer = RegisteredAgentAnswer.of_state(state, agent_api_key=key)
    return Response(answer, headers=generation_headers(answer.generation))


@post(
    "/agents/deregister",
    status_code=200,
    dto=JsonBody[DeregisterInstanceRequest],
    return_dto=None,
    opt=needs("register", agents="body", agent_key=True),
    operation_id="deregister_instance",
    responses=documented(404, 409, 413, 415),
)
async def deregister(
    data: JSONBody[DeregisterInstanceRequest], request: AnyRequest, resources: Injected
) -> DeregisteredAnswer:
    """Say goodbye: an instance of a deployment gets no further calls. Idempotent.

    An announcement of this instance that was published earlier does not bring it back.
    """
    await _decided(resources, data, request)
    return DeregisteredAnswer(deployment_id=data.deployment_id, instance_id=data.instance_id)


@post(
    "/agents/register-build",
    opt=needs("register", agents="body"),
    status_code=200,
    dto=JsonBody[RegisterBuildRequest],
    return_dto=None,
    responses=documented(404, 413, 415),
)
async def register_build(
    data: JSONBody[RegisterBuildRequest], request: AnyRequest, resources: Injected
) -> Response[AgentAnswer]:
    """Register an agent that is built and has no pod yet. Idempotent."""
    answer = AgentAnswer.of_state(await _register(resources, data, request))
    return Response(answer, headers=generation_headers(answer.generation))


@get(
    "/registrations",
    opt=needs("read", agents="answer"),
    operation_id="list_registrations",
    responses=documented(),
)
async def read_registrations(
    *,
    request: AnyRequest,
    resources: Injected,
    agent: AgentFilter = None,
    limit: Limit = 50,
    page_number: PageNumber = 1,
) -> Response[list[RegistrationAnswer]]:
    """Recent registrations and their outcomes, newest first; of one agent name, or of all."""
    lifetime = Lifetime(agent_filter(agent), identity=identity_of(request))
    page = Page(limit=limit, number=page_number)
    return json_response(await resources.lists.read(registrations_question(lifetime, page), registrations_list))


@get(
    "/agents/{agent_id:str}/registrations",
    opt=READ,
    operation_id="list_registrations_of_agent",
    responses=documented(404),
)
async def read_registrations_of_agent(
    agent_id: FromPath[str], resources: Injected, limit: Limit = 50, page_number: PageNumber = 1
) -> Response[list[RegistrationAnswer]]:
    """Recent registrations of one agent, newest first; those of other agents with the same name are left out."""
    uuid = agent_uuid(agent_id)
    page = Page(limit=limit, number=page_number)
    lifetime = Lifetime.of((await resources.agents.by_id(uuid)).agent)
    return json_response(await resources.lists.read(registrations_question(lifetime, page), registrations_list))


REGISTER_ROUTES = [register, deregister, register_build]
ROUTES = [read_registrations, read_registrations_of_agent]


async def _register(
    resources: Resources, data: RegisterAgentRequest | RegisterBuildRequest, request: AnyRequest
) -> AgentSnapshot:
    """The agent after the registration."""
    state = await _decided(resources, data, request)
    assert state is not None  # only an unreadable message has none
    return state


async def _decided(
    resources: Resources,
    data: RegisterAgentRequest | RegisterBuildRequest | DeregisterInstanceRequest,
    request: AnyRequest,
) -> AgentSnapshot | None:
    """The agent after the message. A rejection is raised after the commit, so that the inbox contains it.

    Raises `AgentNotFound` for the name of an agent that the caller does not see.
    """
    if not identity_of(request).sees(data.name):
        raise AgentNotFound
    incoming = Incoming(Announcement(data, resources.message_ids.next(), None, traceparent(request)))
    decided = await resources.registrations.make(data.name, incoming)
    if decided is None:
        with resources.registrations.alone(data.name):
            decided = await _decide_alone(resources, data.name, incoming)
    if isinstance(decided.outcome, Rejected):
        raise decided.outcome.error
    return decided.state


async def _decide_alone(resources: Resources, name: str, incoming: Incoming) -> Decided:
    """The committed outcome of one registration, when it is its agent's turn."""
    terms = Terms.of(resources.settings)
    made = await resources.change(name, lambda session: register_batch(session, [incoming], terms=terms))
    resources.agent_changes.registered(made)
    return made[0]
