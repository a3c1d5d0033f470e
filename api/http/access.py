"""Access rules of routes: what a caller needs, declared where the route is, and enforced by `api.auth.guard`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from litestar.routes import BaseRoute, HTTPRoute

from services.domain.identity import Scope

# Where the agent of a request is named, which the caller must see:
# - path: by id or name in the path; the guard reads it.
# - route: by id or name in the path; the gateway checks it when it reads the route.
# - body: by name in the body; the handler checks it. The guard reads it for the own key of an agent.
# - answer: the handler leaves out the agents that the caller does not see, or answers 404.
# - all: the request concerns all agents, so a key that is bound to some is refused.
Agents = Literal["path", "route", "body", "answer", "all"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a route: any caller with one of these scopes; without scopes, everybody."""

    scopes: tuple[Scope, ...] = ()
    agents: Agents = "all"
    agent_key: bool = False
    """Whether the own key of the agent is accepted too, as `x-agent-api-key`."""

    @property
    def is_public(self) -> bool:
        """Whether the route needs no key."""
        return not self.scopes


class Access(TypedDict):
    """The `opt` of a route."""

    access: Rule


PUBLIC: Access = {"access": Rule()}


def needs(*scopes: Scope, agents: Agents, agent_key: bool = False) -> Access:
    """The rule of a route that needs one of these scopes."""
    return {"access": Rule(scopes, agents, agent_key)}


# The rule of what can be read of one agent.
READ = needs("read", agents="path", agent_key=True)


def rules_of(routes: Iterable[BaseRoute]) -> Mapping[tuple[str, str], Rule]:
    """The rule of each path and method, which is in upper case."""
    return {
        (route.path_format, method): handler.opt["access"]
        for route in routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in sorted(handler.http_methods)
    }
