"""The guard of all routes: who calls, and whether the route's rule allows it."""

from litestar import Request
from litestar.handlers import BaseRouteHandler
from pydantic_core import from_json

from api.auth.admission import Admission
from api.auth.authenticator import is_stored_key
from api.auth.browsers import check_local
from api.auth.credentials import Connection, api_keys, header_values
from api.http.access import Rule
from api.http.parameters import agent_name, agent_uuid
from api.resources import Resources, provide_resources
from services.agents.queries import AgentView
from services.api_keys import AGENT_KEY_PREFIX, agent_api_key, same_secret
from services.domain.identity import EVERYBODY, Identity, Scope
from services.errors import AgentNotFound, AllAgentsNeeded, InsufficientScope, PodiumError

# What the own key of an agent allows, of that agent.
AGENT_SCOPES: frozenset[Scope] = frozenset({"read", "register"})


async def check_caller(connection: Connection, handler: BaseRouteHandler) -> None:
    """Check the caller's key against the route's rule, and keep its identity as the user of the request.

    The guard of the whole application. Raises `Unauthorized`, `InsufficientScope`, `AllAgentsNeeded`,
    `TooManyFailures`, `AgentNotFound` for an agent in the path that the identity does not see, and `Forbidden` if no
    key is required and the request may come from a web page elsewhere.
    """
    resources = provide_resources(connection.app.state)
    rule = rule_of(handler)
    credentials = api_keys(connection)
    if not resources.settings.keys_required:
        check_local(connection)
        if not any(map(is_stored_key, credentials)):
            connection.scope["user"] = EVERYBODY
            return
    if not rule.is_public:
        connection.scope["user"] = await _identity(connection, resources, rule, credentials)


def rule_of(handler: BaseRouteHandler) -> Rule:
    """The rule that the route declares. A route without one is a defect, and serves nobody."""
    rule = handler.opt["access"]
    assert isinstance(rule, Rule)
    return rule


def admission_of(connection: Connection, resources: Resources, handler: BaseRouteHandler) -> Admission:
    """The caller of a route of the gateway, whose rule leaves the rest of the check to it."""
    rule = rule_of(handler)

    async def identify() -> Identity:
        return _allowed(await resources.callers.identify(api_keys(connection), _address(connection)), rule)

    return Admission(connection.scope["user"], identify, resources.callers.recognizes)


async def _identity(connection: Connection, resources: Resources, rule: Rule, credentials: list[str]) -> Identity:
    agent_keys = header_values(connection, b"x-agent-api-key") if rule.agent_key else []
    if rule.agents == "body":
        # Pods of the existing SDK send whatever key they have in this header.
        credentials = [*credentials, *agent_keys]
    own_keys = [given for given in agent_keys if given.startswith(AGENT_KEY_PREFIX)]
    if own_keys and (of_agent := await _agent_of_key(connection, resources, rule, own_keys)) is not None:
        return of_agent
    callers = resources.callers
    identify = callers.identify_caller if rule.agents == "route" else callers.identify
    identity = _allowed(await identify(credentials, _address(connection)), rule)
    if identity.agents is not None and rule.agents == "path":
        name = (await _in_path(connection, resources)).agent.name
        if not identity.sees(name):
            raise AgentNotFound
    return identity


async def reads_all_agents(connection: Connection, resources: Resources) -> bool:
    """Whether the caller of a public route may read every agent; not if its key cannot be checked now."""
    if not resources.settings.keys_required:
        return True
    try:
        identity = await resources.callers.identify(api_keys(connection), _address(connection))
    except PodiumError:
        return False
    return identity.may("read") and identity.agents is None


def _allowed(identity: Identity, rule: Rule) -> Identity:
    """The identity, if the rule allows it whatever the agent. Raises `InsufficientScope`, `AllAgentsNeeded`."""
    if not identity.may(*rule.scopes):
        raise InsufficientScope(rule.scopes)
    if identity.agents is not None and rule.agents == "all":
        raise AllAgentsNeeded
    return identity


async def _agent_of_key(
    connection: Connection, resources: Resources, rule: Rule, own_keys: list[str]
) -> Identity | None:
    """The identity of the living agent that the request names, if one of these is its key."""
    try:
        read = _in_body if rule.agents == "body" else _in_path
        agent = (await read(connection, resources)).agent
    except (AgentNotFound, ValueError, TypeError, KeyError):
        return None
    expected = agent_api_key(resources.settings.secret_key.get_secret_value(), agent.id)
    if agent.deleted_at is not None or not any(same_secret(given, expected) for given in own_keys):
        return None
    return Identity(f"agent:{agent.name}", AGENT_SCOPES, (agent.name,))


async def _in_path(connection: Connection, resources: Resources) -> AgentView:
    """The agent that the path names. Raises `AgentNotFound`."""
    path = connection.path_params
    if "name" in path:
        return await resources.agents.by_name(agent_name(path["name"]))
    return await resources.agents.by_id(agent_uuid(path["agent_id"]))


async def _in_body(connection: Connection, resources: Resources) -> AgentView:
    """The agent that the body names. Raises `AgentNotFound`, and other errors for a malformed body."""
    assert isinstance(connection, Request)
    return await resources.agents.by_name(agent_name(from_json(await connection.body())["name"]))


def _address(connection: Connection) -> str:
    """The address that the request comes from."""
    client = connection.scope.get("client")
    return client[0] if client else ""
