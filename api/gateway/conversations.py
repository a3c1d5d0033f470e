"""Conversations in forwarded calls: all API processes know where a key belongs before its next call can arrive.

The first call with a key of its caller's is pinned before it is sent. A key that the agent issues, an MCP session id or
an id in an answer, is pinned before the caller receives it.
https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#session-management
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog

from api.gateway.conversation_ids import ids_of_call
from api.gateway.gateway import Gateway
from api.gateway.upstream import AgentAnswer
from api.http.jsonrpc import ForwardingFailure
from services.domain.state import ConversationKeys
from services.errors import PodiumError, Unavailable
from services.routing.conversations import (
    ConversationTerms,
    Kind,
    Pin,
    digest_of,
    end_session,
    keep_session,
    move_conversation,
    pin_conversation,
    session_seen,
)
from services.routing.resolver import Admit
from services.routing.routes import Route, RouteKey
from services.storage.database import in_transaction

Work = Callable[..., Awaitable[None]]
Keep = Callable[..., Awaitable[bool]]

MCP_HEADER = b"mcp-session-id"
KEY_HEADER = b"x-podium-session"
MOVED_HEADER = b"x-podium-session-moved"
KEY_MAX_BYTES = 256
# A route is read again if its deployment is drained, or another process pins the key, between the read and the pin.
ATTEMPTS = 4
_SUCCESSES = range(200, 300)

log = structlog.get_logger(__name__)


class InvalidConversationKey(PodiumError):
    """x-podium-session must be sent once, with at most 256 bytes."""

    status = 400
    reason = "invalid-conversation-key"


class InstanceGone(PodiumError):
    """The instance that has this MCP session is gone: start a new session."""

    status = 404
    reason = "session-instance-gone"


class ConversationNotPinned(Unavailable):
    """The conversation could not be stored, so the call was not sent: try again."""

    reason = "conversation-not-pinned"


class SessionNotKept(ForwardingFailure):
    """The agent opened a session, but the database cannot be reached to store its deployment: try again."""

    status = 503
    reason = "session-not-kept"
    sent = True


@dataclass(frozen=True, slots=True)
class RoutedCall:
    """The route of a call, and the key of its conversation, whose digest is `key.session`."""

    route: Route
    key: RouteKey
    kind: Kind | None

    @property
    def preferred_instance(self) -> str | None:
        """The instance that should get the call. Raises `InstanceGone`."""
        route = self.route
        if route.pinned_instance is None or not (self.kind == "mcp" or route.affinity == "instance"):
            return None
        is_there = any(each.instance_id == route.pinned_instance for each in route.instances)
        if self.kind == "mcp" and route.affinity == "instance" and not is_there:
            raise InstanceGone
        return route.pinned_instance if is_there else None

    def pin_to(self, route: Route, digest: bytes) -> Pin:
        """Where a conversation belongs whose call has gone to this route."""
        assert route.deployment_id is not None
        instance_id = route.instance_id if route.affinity == "instance" else None
        return Pin(route.agent_id, digest, route.deployment_id, instance_id, self.key.deployment_id is not None)


def key_in_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Kind, bytes] | None:
    """The key in the headers of a call, if there is one. Raises `InvalidConversationKey`."""
    mcp: list[bytes] = []
    explicit: list[bytes] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == MCP_HEADER:
            mcp.append(value)
        elif lowered == KEY_HEADER:
            explicit.append(value)
    if explicit:
        if len(explicit) > 1 or not 0 < len(explicit[0]) <= KEY_MAX_BYTES:
            raise InvalidConversationKey
        return "explicit", explicit[0]
    return ("mcp", mcp[0]) if len(mcp) == 1 else None


async def route_call(
    gateway: Gateway,
    key: RouteKey,
    path: str,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    *,
    admit: Admit | None = None,
) -> RoutedCall:
    """The route of a call, in its conversation if it has one.

    Raises as `RouteResolver.find` does, and `InvalidConversationKey`.

    Ids in the body are looked for if the agent opted in. The process remembers the paths of agents that did, so that
    their calls need no second read.
    """
    in_headers = key_in_headers(headers)
    opted_in = None if in_headers is not None else gateway.opted_in.get(path)
    given = in_headers or _key_in_body(opted_in, body)
    routed = await _routed(gateway, key, given, admit)
    if in_headers is None and routed.route.conversation_keys != opted_in:
        opted_in = gateway.opted_in.learn(path, routed.route.conversation_keys)
        in_body = _key_in_body(opted_in, body)
        if in_body != given:
            routed = await _routed(gateway, key, in_body, admit)
    return routed


async def begin_conversation(gateway: Gateway, routed: RoutedCall, route: Route) -> bool:
    """Pin a conversation to the route of its first call; False if the route of the call must be read again.

    Calls without a key, and those in a known conversation, need nothing. Raises `ConversationNotPinned`.
    """
    digest = routed.key.session
    if digest is None or routed.kind == "mcp" or route.session_known:
        return True
    if route.deployment_id is None or route.affinity == "none":
        return True
    pin, terms = routed.pin_to(route, digest), ConversationTerms.of(gateway.settings)
    try:
        return await in_transaction(gateway.sessions, lambda session: pin_conversation(session, pin, terms))
    except Unavailable as exc:
        raise ConversationNotPinned from exc


async def follow_conversation(
    gateway: Gateway, method: str, routed: RoutedCall, route: Route, response: AgentAnswer
) -> None:
    """Store what an answer says about the conversation; committed before the caller sees the answer.

    A call without a key writes nothing; a call in a known conversation writes at most once an hour. Raises
    `SessionNotKept`.
    """
    if route.deployment_id is None or route.affinity == "none":
        return
    requested = routed.key.session
    succeeded = response.status in _SUCCESSES
    if requested is not None and route.session_known and (succeeded or routed.kind != "mcp"):
        await _update_known(gateway, method, routed, route)
    if not succeeded or (method == "DELETE" and routed.kind == "mcp"):
        return
    issued = _issued(response, routed.key.deployment_id)
    if issued is not None and not (issued == requested and route.session_known):
        keep = partial(
            keep_session,
            agent_id=route.agent_id,
            digest=issued,
            deployment_id=route.deployment_id,
            preview=routed.key.deployment_id is not None,
            instance_id=route.instance_id,
        )
        await _keep(gateway, keep, route)


async def keep_issued_ids(gateway: Gateway, routed: RoutedCall, route: Route, ids: list[tuple[Kind, bytes]]) -> None:
    """Pin the ids in an answer to the route of its call. Ids of open conversations stay where they are.

    Raises `SessionNotKept`.
    """
    terms = ConversationTerms.of(gateway.settings)
    for kind, found in ids:
        digest = digest_of(found, routed.key.deployment_id, kind)
        if digest == routed.key.session:
            continue
        pin = routed.pin_to(route, digest)
        try:
            await in_transaction(
                gateway.sessions,
                lambda session, pin=pin: pin_conversation(session, pin, terms),  # type: ignore[misc]
            )
        except Unavailable as exc:
            raise SessionNotKept from exc


def _key_in_body(opted_in: ConversationKeys | None, body: bytes) -> tuple[Kind, bytes] | None:
    return next(iter(ids_of_call(opted_in, body)), None) if opted_in is not None and body else None


async def _routed(gateway: Gateway, key: RouteKey, given: tuple[Kind, bytes] | None, admit: Admit | None) -> RoutedCall:
    if given is None:
        return RoutedCall(await gateway.routes.find(key, admit), key, None)
    kind, value = given
    in_conversation = key.in_session(digest_of(value, key.deployment_id, kind))
    return RoutedCall(await gateway.routes.find(in_conversation, admit), in_conversation, kind)


def _issued(response: AgentAnswer, preview: str | None) -> bytes | None:
    """The digest of the MCP session id in an answer; None if there is none, or more than one."""
    found = [value for name, value in response.raw_headers if name.lower() == MCP_HEADER]
    return digest_of(found[0], preview) if len(found) == 1 else None


async def _update_known(gateway: Gateway, method: str, routed: RoutedCall, route: Route) -> None:
    """Update a known conversation. A failure does no harm: agents refuse ended sessions, and retention deletes them."""
    digest = routed.key.session
    assert digest is not None
    if method == "DELETE" and routed.kind == "mcp":
        await _update(gateway, partial(end_session, agent_id=route.agent_id, digest=digest))
        return
    follows = routed.kind == "mcp" or route.affinity == "instance"
    if follows and route.instance_id is not None and route.instance_id != route.pinned_instance:
        assert route.deployment_id is not None
        pin = Pin(route.agent_id, digest, route.deployment_id, route.instance_id, preview=False)
        await _update(gateway, partial(move_conversation, pin=pin))
    elif route.session_unseen:
        every = timedelta(seconds=route.seen_every or 0)
        await _update(gateway, partial(session_seen, agent_id=route.agent_id, digest=digest, every=every))


async def _update(gateway: Gateway, work: Work) -> None:
    with suppress(Unavailable):
        await in_transaction(gateway.sessions, work)


async def _keep(gateway: Gateway, keep: Keep, route: Route) -> None:
    try:
        if not await in_transaction(gateway.sessions, keep):
            raise SessionNotKept(
                "The agent opened a session, but the deployment has stopped serving meanwhile: try again."
            )
    except Unavailable as exc:
        log.warning(
            "A session that an agent opened could not be stored.",
            action="rpc.session_lost",
            agent_id=str(route.agent_id),
            deployment_id=route.deployment_id,
        )
        raise SessionNotKept from exc
