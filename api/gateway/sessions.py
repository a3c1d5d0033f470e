"""Sessions of MCP over HTTP, as they pass by: the id that an agent issues is known everywhere before its client has it.

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
from services.routing.routes import Route
from services.routing.sessions import digest_of, end_session, keep_session, session_seen
from services.storage.database import in_transaction

Work = Callable[..., Awaitable[None]]

SESSION_HEADER = b"mcp-session-id"
_SUCCESSES = range(200, 300)

log = structlog.get_logger(__name__)


class SessionNotKept(ForwardingFailure):
    """The agent opened a session, but the database cannot be reached to remember whose it is: try again."""

    status = 503
    reason = "session-not-kept"
    sent = True


def session_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The digest of the session that a message names; None if it names none, or more than one."""
    found = [value for name, value in headers if name.lower() == SESSION_HEADER]
    return digest_of(found[0]) if len(found) == 1 else None


async def follow_session(
    gateway: Gateway, method: str, asked: bytes | None, route: Route, response: aiohttp.ClientResponse
) -> None:
    """What the answer says of its session, committed before the answer is passed on. Raises `SessionNotKept`.

    Costs a call without a session nothing, and a call in one that is known nothing but once an hour.
    """
    if route.deployment_id is None or response.status not in _SUCCESSES:
        return
    if method == "DELETE":
        await _ended(gateway, asked, route)
        return
    issued = session_of(response.raw_headers)
    if asked is not None and route.session_unseen:
        await _touched(gateway, session_seen, asked, route)
    if issued is not None and not (issued == asked and route.session_known):
        await _issued(gateway, issued, route, route.deployment_id)


async def _ended(gateway: Gateway, asked: bytes | None, route: Route) -> None:
    if asked is not None and route.session_known:
        await _touched(gateway, end_session, asked, route)


async def _touched(gateway: Gateway, work: Work, digest: bytes, route: Route) -> None:
    """Nothing hangs on it: the agent itself refuses a session that has ended, and retention forgets it."""
    with suppress(Unavailable):
        await in_transaction(gateway.sessions, partial(work, agent_id=route.agent_id, digest=digest))


async def _issued(gateway: Gateway, digest: bytes, route: Route, deployment_id: str) -> None:
    keep = partial(keep_session, agent_id=route.agent_id, digest=digest, deployment_id=deployment_id)
    try:
        await in_transaction(gateway.sessions, keep)
    except Unavailable as exc:
        log.warning(
            "A session that an agent opened could not be remembered.",
            action="rpc.session_lost",
            agent_id=str(route.agent_id),
            deployment_id=deployment_id,
        )
        raise SessionNotKept from exc
