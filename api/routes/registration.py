"""Announcements over HTTP: the same service call as the queue's, with one message."""

from uuid import uuid4

from litestar import Response, post
from litestar.params import JSONBody

from api.http.access import FOR_AGENTS
from api.http.parameters import AnyRequest, traceparent
from api.http.preconditions import generation_header
from api.http.problems import documented
from api.http.requests import JsonBody
from api.http.responses import AgentAnswer, RegisteredAgentAnswer
from api.resources import Injected, Resources
from contracts.messages import RegisterAgentRequest, RegisterBuildRequest
from services.api_keys import agent_api_key
from services.domain.announcement import Announcement, Rejected
from services.domain.state import AgentSnapshot
from services.registration.batch import Incoming, register_batch
from services.storage.database import in_transaction


@post(
    "/agents/register",
    status_code=200,
    dto=JsonBody[RegisterAgentRequest],
    return_dto=None,
    opt=FOR_AGENTS,
    responses=documented(409, 410, 413),
)
async def register(
    data: JSONBody[RegisterAgentRequest], request: AnyRequest, resources: Injected
) -> Response[RegisteredAgentAnswer]:
    """A pod announces itself: one agent or one version of it can be reached at this address now.

    Says 200 also when something newer was applied before, or when production keeps the traffic. The answer carries
    the key with which the agent's pods can register again.
    """
    state = await _announce(resources, data, traceparent(request))
    key = agent_api_key(resources.settings.secret_key.get_secret_value(), state.agent.id)
    answer = RegisteredAgentAnswer.of_state(state, agent_api_key=key)
    return Response(answer, headers=generation_header(answer.generation))


@post(
    "/agents/register-build",
    status_code=200,
    dto=JsonBody[RegisterBuildRequest],
    return_dto=None,
    responses=documented(413),
)
async def register_build(
    data: JSONBody[RegisterBuildRequest], request: AnyRequest, resources: Injected
) -> Response[AgentAnswer]:
    """An agent that was built and has no pod yet; repeat it as often as you like."""
    answer = AgentAnswer.of_state(await _announce(resources, data, traceparent(request)))
    return Response(answer, headers=generation_header(answer.generation))


async def _announce(
    resources: Resources, request: RegisterAgentRequest | RegisterBuildRequest, trace: str | None
) -> AgentSnapshot:
    """The agent after the announcement. A refusal is raised once it is committed, so that the inbox tells of it."""
    incoming = Incoming(Announcement(request, uuid4(), None, trace))
    proof = resources.settings.ready_requires_probe
    [decided] = await in_transaction(
        resources.sessions, lambda session: register_batch(session, [incoming], requires_probe=proof)
    )
    if isinstance(decided.outcome, Rejected):
        raise decided.outcome.error
    assert decided.state is not None  # every outcome but Rejected is about an agent
    return decided.state


ROUTES = [register, register_build]
