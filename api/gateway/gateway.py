"""The RPC gateway of one API process: the resources that forwarding a call needs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from api.gateway.active_conversations import ActiveConversations, open_active_conversations
from api.gateway.balancer import Balancer
from api.gateway.call_limits import CallLimits
from api.gateway.circuit_breaker import CircuitBreakers
from api.gateway.request_buffer import RequestBuffer
from api.gateway.spans import Tracing
from api.gateway.telemetry import RpcMetrics
from api.gateway.upstream import open_upstream
from contracts.fields import ErrorStyle
from services.agents.metrics import LabelledAgents
from services.calls.counts import CallCounts, open_call_counts
from services.domain.state import ConversationKeys
from services.errors import MessageTooLarge, PodiumError, Unavailable
from services.health.answered_calls import AnsweredCalls, open_answered_calls
from services.routing.resolver import RouteResolver
from services.settings import Settings
from services.storage.database import Sessions
from services.tracing.start import open_tracer

# A path takes a few dozen bytes.
REMEMBERED_PATHS = 10_000


class ErrorStyles:
    """The last known error style of each path: refusals keep their style while the database cannot be reached."""

    def __init__(self) -> None:
        self._jsonrpc: dict[str, None] = {}

    def learn(self, path: str, style: ErrorStyle) -> None:
        """Remember the style that was read for this path."""
        self._jsonrpc.pop(path, None)
        if style == "jsonrpc":
            self._jsonrpc[path] = None
            if len(self._jsonrpc) > REMEMBERED_PATHS:
                del self._jsonrpc[next(iter(self._jsonrpc))]

    def status_of(self, error: PodiumError, method: str, path: str) -> int:
        """The HTTP status of a refusal: 200 for a POST to an agent with error style `jsonrpc`, else the error's own.

        A GET or DELETE is not a JSON-RPC call: status 200 would mean that it succeeded.
        """
        style = error.error_style
        if style is None and isinstance(error, Unavailable | MessageTooLarge) and path in self._jsonrpc:
            style = "jsonrpc"
        return HTTPStatus.OK if style == "jsonrpc" and method == "POST" else error.status


class OptedIn:
    """The paths of agents that opted in to ids in bodies, as far as this process has seen them."""

    def __init__(self) -> None:
        self._keys: dict[str, ConversationKeys] = {}

    def get(self, path: str) -> ConversationKeys | None:
        """What the agent of this path has opted in to, when it was last seen."""
        return self._keys.get(path)

    def learn(self, path: str, keys: ConversationKeys | None) -> ConversationKeys | None:
        """Remember what was read for this path; returns it."""
        self._keys.pop(path, None)
        if keys is not None:
            self._keys[path] = keys
            if len(self._keys) > REMEMBERED_PATHS:
                del self._keys[next(iter(self._keys))]
        return keys


@dataclass(frozen=True, slots=True)
class Gateway:
    """Open from start to stop of the process. `sessions` stores conversations; each statement commits by itself."""

    settings: Settings
    sessions: Sessions
    routes: RouteResolver
    balancer: Balancer
    metrics: RpcMetrics
    request_buffer: RequestBuffer
    answered_calls: AnsweredCalls
    active_conversations: ActiveConversations
    call_counts: CallCounts
    tracing: Tracing | None = None
    error_styles: ErrorStyles = field(default_factory=ErrorStyles)
    opted_in: OptedIn = field(default_factory=OptedIn)
    call_limits: CallLimits = field(default_factory=CallLimits)


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    sessions: Sessions,
    registry: CollectorRegistry,
    *,
    agents: LabelledAgents,
    application_name: str,
) -> AsyncGenerator[Gateway, None]:
    """The gateway, closed on exit. It connects to nothing before the first call."""
    breakers, metrics = CircuitBreakers(settings), RpcMetrics(registry, agents)
    metrics.watch(breakers)
    async with (
        open_upstream(settings) as upstream,
        RouteResolver(settings, application_name=application_name) as routes,
        open_answered_calls(sessions) as answered_calls,
        open_active_conversations(sessions) as active_conversations,
        open_call_counts(sessions, settings.call_counts_retention) as call_counts,
        open_tracer(settings, application_name) as tracer,
    ):
        yield Gateway(
            settings=settings,
            sessions=sessions,
            routes=routes,
            balancer=Balancer(settings, breakers, upstream, metrics.failovers),
            metrics=metrics,
            request_buffer=RequestBuffer(settings),
            answered_calls=answered_calls,
            active_conversations=active_conversations,
            call_counts=call_counts,
            tracing=None if tracer is None else Tracing(tracer),
        )
