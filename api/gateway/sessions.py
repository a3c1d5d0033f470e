"""MCP sessions in forwarded calls: all API processes know a session id before the client that opened it receives it.

https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#session-management
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial

import aiohttp
import structlog

from api.gateway.gateway import Gateway
from api.http.jsonrpc import ForwardingFailure
from services.errors import Unavailable
from services.routing.routes import Route, RouteKey
from services.routing.sessions import digest_of, end_session, keep_session, session_seen
from services.storage.database import in_transaction

Work = Callable[..., Awaitable[None]]

SESSION_HEADER = b"mcp-session-id"
_SUCCESSES = range(200, 300)

log = structlog.get_logger(__name__)


class SessionNotKept(ForwardingFailure):
    """The agent opened a session, but the database cannot be reached to store its deployment: try again."""

    status = 503
    reason = "session-not-kept"
    sent = True


def session_of(headers: Iterable[tuple[bytes, bytes]], preview: str | None) -> bytes | None:
    """The digest of the session id in the headers, on the route of the deployment `preview` or on production's (None).

    None if there is no session id, or more than one.
    """
    found = [value for name, value in headers if name.lower() == SESSION_HEADER]
    return digest_of(found[0], preview) if len(found) == 1 else None


async def follow_session(
    gateway: Gateway, method: str, key: RouteKey, route: Route, response: aiohttp.ClientResponse
) -> None:
    """Store what an answer says about its session on the route of `key`; committed before the caller sees the answer.

    A call without a session writes nothing; a call in a known session writes once an hour. Raises `SessionNotKept`.
    """
    if route.deployment_id is None or response.status not in _SUCCESSES:
        return
    requested = key.session
    if method == "DELETE":
        if requested is not None and route.session_known:
            await _update(gateway, end_session, requested, route)
        return
    issued = session_of(response.raw_headers, key.deployment_id)
    if requested is not None and route.session_unseen:
        await _update(gateway, session_seen, requested, route)
    if issued is not None and not (issued == requested and route.session_known):
        keep = partial(
            keep_session,
            agent_id=route.agent_id,
            digest=issued,
            deployment_id=route.deployment_id,
            preview=key.deployment_id is not None,
        )
        await _keep(gateway, keep, route)


async def _update(gateway: Gateway, work: Work, digest: bytes, route: Route) -> None:
    """Update a known session. A failure does no harm: the agent refuses ended sessions, and retention deletes them."""
    with suppress(Unavailable):
        await in_transaction(gateway.sessions, partial(work, agent_id=route.agent_id, digest=digest))


async def _keep(gateway: Gateway, keep: Work, route: Route) -> None:
    try:
        await in_transaction(gateway.sessions, keep)
    except Unavailable as exc:
        log.warning(
            "A session that an agent opened could not be stored.",
            action="rpc.session_lost",
            agent_id=str(route.agent_id),
            deployment_id=route.deployment_id,
        )
        raise SessionNotKept from exc
