"""Bytes in, bytes out: one call is sent to the one deployment that its route names, and its answer comes back.

The body is never parsed on its way, and each chunk of the answer goes out as it comes in. The route is read for each
call after the call has come in, so that a promote holds for every call sent after its reply.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import aiohttp
import structlog
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import HTTPScope, Receive, Scope, Send

from api.forwarded import request_headers, response_headers
from api.jsonrpc import error_response, request_id
from api.mcp_sessions import follow_session, session_of
from api.problems import refusal_headers
from api.resources import Resources
from api.upstream import Call, call_agent
from contracts.fields import ErrorStyle
from services.errors import MessageTooLarge, PodiumError
from services.routing import Route, Wanted

log = structlog.get_logger(__name__)


class ClientLeft(Exception):
    """The caller is gone; nobody waits for an answer."""


class AnswerBroke(Exception):
    """The agent's answer ended before its end. It is passed on as that: the connection is closed, nothing is added."""


class Forward:
    """One call on its way: an ASGI application that a route handler returns."""

    def __init__(self, resources: Resources, wanted: Wanted) -> None:
        self._resources = resources
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the call, unless its caller leaves first."""
        assert scope["type"] == ScopeType.HTTP
        with suppress(ClientLeft):
            try:
                body = await _body(scope, receive, self._resources.settings.rpc_max_bytes)
            except MessageTooLarge as exc:
                await self._learn_style(scope["path"])
                await self._refuse(exc, b"", scope, receive, send)
            else:
                await _while_listening(self._forward(scope, receive, send, body), receive)

    async def _forward(self, scope: HTTPScope, receive: Receive, send: Send, body: bytes) -> None:
        resources = self._resources
        style: ErrorStyle | None = None
        try:
            session = session_of(scope["headers"])
            route = await resources.routes.find(self._wanted.in_session(session))
            style = route.error_style
            resources.error_styles.learn(scope["path"], style)
            call = Call(
                method=scope["method"],
                url=route.rpc_url,
                query=scope["query_string"],
                headers=request_headers(scope["headers"]),
                body=body,
            )
            response = await call_agent(resources.http, call, resources.settings)
            await follow_session(resources, scope["method"], session, route, response)
        except PodiumError as exc:
            log.info("A call was not forwarded.", action="rpc.refused", path=scope["path"], reason=exc.reason)
            await self._refuse(exc.in_style(style or exc.error_style), body, scope, receive, send)
            return
        try:
            await _pass_on(response, route, send, resources.settings.idle_timeout.total_seconds())
        finally:
            response.close()

    async def _learn_style(self, path: str) -> None:
        """Look up how to refuse a call that is refused before its route is read."""
        try:
            style: ErrorStyle | None = (await self._resources.routes.find(self._wanted)).error_style
        except PodiumError as exc:
            style = exc.error_style
        if style is not None:
            self._resources.error_styles.learn(path, style)

    async def _refuse(self, error: PodiumError, body: bytes, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Answer with a JSON-RPC error object that carries the id of the call."""
        status = self._resources.error_styles.status_of(error, scope["method"], scope["path"])
        response = error_response(error, call_id=request_id(body), headers=refusal_headers(error), status=status)
        await response.to_asgi_response(app=None, request=Request(scope))(scope, receive, send)


async def _pass_on(response: aiohttp.ClientResponse, route: Route, send: Send, idle_seconds: float) -> None:
    """Send the answer on, chunk by chunk. Raises `AnswerBroke`."""
    headers = response_headers(response.raw_headers, route)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await response.content.readany()
        except (aiohttp.ClientError, OSError) as exc:
            reason = "idle-timeout" if isinstance(exc, TimeoutError) else "agent-hung-up"
            log.warning(
                "An agent's answer ended before its end.",
                action="rpc.broken",
                reason=reason,
                agent_id=str(route.agent_id),
                deployment_id=route.deployment_id,
            )
            raise AnswerBroke(reason) from exc
        more = not response.content.at_eof()
        await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def _while_listening(forwarding: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Forward; as soon as the caller leaves, stop, which closes the call to the agent as well."""
    forward = asyncio.create_task(forwarding)
    leave = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((forward, leave), return_when=asyncio.FIRST_COMPLETED)
    finally:
        forward.cancel()
        leave.cancel()
        await asyncio.wait((forward, leave))
    if not forward.cancelled():
        forward.result()


async def _left(receive: Receive) -> None:
    """Returns once the caller is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(scope: HTTPScope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises `MessageTooLarge` before it is read any further, `ClientLeft`."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    body = bytearray()
    more = True
    while more and max(len(body), int(announced)) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    if more or len(body) > limit:
        raise MessageTooLarge(f"The body is larger than {limit} bytes.")
    return bytes(body)
