"""Forwards one call to the one deployment of its route and streams the answer back, byte for byte.

The gateway never parses the body, and sends each chunk of the answer as it arrives. It reads the route of each call
after it has received the call, so that a promote applies to every call sent after the promote's reply.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import HTTPScope, Receive, Scope, Send
from multidict import CIMultiDict

from api.auth.admission import Admission
from api.gateway.balancer import BalancedCall
from api.gateway.challenges import WELL_KNOWN
from api.gateway.conversation_ids import ids_of_answer, needs_more
from api.gateway.conversations import (
    ATTEMPTS,
    MOVED_HEADER,
    ConversationNotPinned,
    RoutedCall,
    begin_conversation,
    follow_conversation,
    keep_issued_ids,
    route_call,
)
from api.gateway.gateway import Gateway
from api.gateway.headers import RawHeaders, caller_authorization, request_headers, response_headers
from api.gateway.redirects import LOCATION, returned_location
from api.gateway.request_buffer import SMALL_BYTES, BufferedBody, RequestBufferFull
from api.gateway.spans import CallSpans
from api.gateway.telemetry import ANSWERED, BROKEN, LEFT, CallRecord, kind_of
from api.gateway.upstream import AgentAnswer, AgentHungUp, Call
from api.http.jsonrpc import error_response, request_id
from api.http.parameters import REQUEST_ID_HEADER
from api.http.problems import refusal_headers
from api.http.request_body import ClientDisconnected, check_headers, read_body, while_connected
from contracts.fields import ErrorStyle
from services.errors import MessageTooLarge, PodiumError
from services.routing.routes import Route, RouteKey

_REQUEST_ID = REQUEST_ID_HEADER.encode()


class UpstreamResponseBroken(Exception):
    """The agent's answer ended early. The server closes the caller's connection and adds no ending to the answer."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A call that has its route: what it came with, and its record."""

    scope: HTTPScope
    send: Send
    headers: CIMultiDict[str]
    buffered: BufferedBody
    record: CallRecord
    routed: RoutedCall


class Forward:
    """The forwarding of one call: an ASGI application that a route handler returns."""

    def __init__(self, gateway: Gateway, key: RouteKey, admission: Admission) -> None:
        self._gateway = gateway
        self._key = key
        self._admission = admission
        self._admit = None if admission.is_open else admission.check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the call until its end or the caller's disconnect, and record it in metrics and log."""
        assert scope["type"] == ScopeType.HTTP
        headers, span = request_headers(scope["headers"])
        record = CallRecord(
            metrics=self._gateway.metrics,
            counts=self._gateway.call_counts,
            kind=kind_of(self._key),
            method=scope["method"],
            request_id=headers[REQUEST_ID_HEADER],
            trace_id=span.trace_id,
            span_id=span.span_id,
            began=perf_counter(),
            actor=self._admission.identity.actor,
        )
        if self._gateway.tracing is not None:
            record.spans = CallSpans(self._gateway.tracing, scope, record.kind, span.parent)
            server = record.spans.server.context
            record.trace_id, record.span_id = f"{server.trace_id:032x}", f"{server.span_id:016x}"
        try:
            await self._serve(scope, receive, send, headers, record)
        except ClientDisconnected:
            record.outcome = LEFT
        finally:
            record.end()

    async def _serve(
        self, scope: HTTPScope, receive: Receive, send: Send, headers: CIMultiDict[str], record: CallRecord
    ) -> None:
        with self._gateway.request_buffer.body() as buffered:
            try:
                check_headers(scope)
                buffered.content = await self._read(scope, receive, buffered, record)
            except (MessageTooLarge, RequestBufferFull) as exc:
                await self._learn_style(scope["path"])
                await self._refuse(exc, b"", record, scope, send)
            except PodiumError as exc:
                await self._refuse(exc, b"", record, scope, send)
            else:
                await while_connected(self._forward(scope, send, headers, buffered, record), scope, receive)

    async def _read(self, scope: HTTPScope, receive: Receive, buffered: BufferedBody, record: CallRecord) -> bytes:
        """The body. A large one is refused before it is read if its call would be refused now."""
        settings = self._gateway.settings
        checked = False

        async def admit(size: int) -> None:
            nonlocal checked
            buffered.reserve(size)
            if size > SMALL_BYTES and not checked:
                checked = True
                route = await self._gateway.routes.find(self._key, self._admit)
                record.routed(route)
                self._gateway.error_styles.learn(scope["path"], route.error_style)
                self._gateway.balancer.check(route)

        return await read_body(scope, receive, settings.rpc_max_bytes, settings.body_timeout, admit)

    async def _forward(
        self, scope: HTTPScope, send: Send, headers: CIMultiDict[str], buffered: BufferedBody, record: CallRecord
    ) -> None:
        style: ErrorStyle | None = None
        path = scope["path"]
        try:
            for _ in range(ATTEMPTS):
                routed = await route_call(
                    self._gateway, self._key, path, scope["headers"], buffered.content, admit=self._admit
                )
                record.routed(routed.route)
                style = routed.route.error_style
                self._gateway.error_styles.learn(path, style)
                with (
                    self._gateway.call_limits.call(self._admission.identity, routed.route),
                    self._gateway.balancer.enter(routed.route, preferred=routed.preferred_instance) as call,
                ):
                    if await begin_conversation(self._gateway, routed, call.route):
                        exchange = self._exchange(_InFlight(scope, send, headers, buffered, record, routed), call)
                        if routed.key.session is None:
                            await exchange
                        else:
                            with self._gateway.active_conversations.call(routed.route, routed.key.session):
                                await exchange
                        return
            raise ConversationNotPinned
        except PodiumError as exc:
            await self._refuse(exc.in_style(style or exc.error_style), buffered.content, record, scope, send)

    async def _exchange(self, now: "_InFlight", call: BalancedCall) -> None:
        """Send the call, and the answer to the caller."""
        scope, record, buffered = now.scope, now.record, now.buffered
        record.request_bytes = len(buffered.content)
        headers = now.headers
        record.sent(headers)
        if call.route.forward_authorization == "pass":
            headers = self._with_authorization(scope, headers)
        try:
            response = await call.answer(
                lambda to: Call(scope["method"], to.rpc_url, scope["query_string"], headers, buffered.content)
            )
        finally:
            route = record.route = call.route
            record.failovers = call.failovers
        self._gateway.answered_calls.record(route.deployment_id, route.instance_id or "", response.status)
        try:
            await follow_conversation(self._gateway, scope["method"], now.routed, route, response)
            returned = self._answer_headers(response, route, scope, record)
            buffered.release()
            began = await self._with_issued_ids(now.routed, route, response) if route.conversation_keys else b""
            await self._stream_answer(response, returned, now.send, record, began)
        finally:
            response.close()

    def _with_authorization(self, scope: HTTPScope, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        """The headers for an agent that authenticates its callers itself."""
        authorization = caller_authorization(scope["headers"], self._admission.recognizes)
        if authorization is None:
            return headers
        complete = headers.copy()
        complete["authorization"] = authorization
        return complete

    async def _with_issued_ids(self, routed: RoutedCall, route: Route, response: AgentAnswer) -> bytes:
        """The beginning of the answer; the ids of conversations that it issues are pinned already."""
        assert route.conversation_keys is not None
        began = b""
        if route.deployment_id is None or route.affinity == "none" or not response.ok:
            return began
        try:
            while not response.content.at_eof() and needs_more(began, response.content_type):
                began += await response.content.readany()
        except (aiohttp.ClientError, OSError) as exc:
            raise AgentHungUp from exc
        await keep_issued_ids(self._gateway, routed, route, ids_of_answer(route.conversation_keys, began))
        return began

    def _answer_headers(self, response: AgentAnswer, route: Route, scope: HTTPScope, record: CallRecord) -> RawHeaders:
        """The headers for the caller. Raises `AgentProtocolError`, `AgentRedirects`."""
        metadata_url = None
        if route.forward_authorization == "pass":
            metadata_url = f"{self._base_url(scope)}{WELL_KNOWN}{_path(scope)}"
        headers = response_headers(response.raw_headers, route, metadata_url)
        if record.request_id.isascii():
            headers.append((_REQUEST_ID, record.request_id.encode()))
        if route.moved_from is not None:
            headers.append((MOVED_HEADER, route.moved_from.encode()))
        if "location" not in response.headers:
            return headers
        route_url = f"{self._gateway.settings.public_url.rstrip('/')}{_path(scope)}"
        location = returned_location(response.status, response.raw_headers, rpc_url=route.rpc_url, route_url=route_url)
        return headers if location is None else [*headers, (LOCATION, location)]

    def _base_url(self, scope: HTTPScope) -> str:
        """The URL of this API for callers."""
        configured = self._gateway.settings.public_url.rstrip("/")
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return configured or f"{scope['scheme']}://{hosts[0].decode('latin-1') if hosts else ''}"

    async def _stream_answer(
        self,
        response: AgentAnswer,
        headers: RawHeaders,
        send: Send,
        record: CallRecord,
        began: bytes = b"",
    ) -> None:
        """Send the answer to the caller, chunk by chunk, after what has been read of it.

        Raises `UpstreamResponseBroken`.
        """
        record.answer_began(response.status)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        more = True
        if began:
            record.response_bytes += len(began)
            more = not response.content.at_eof()
            await send({"type": "http.response.body", "body": began, "more_body": more})
        while more:
            try:
                chunk = await response.content.readany()
            except (aiohttp.ClientError, OSError) as exc:
                record.outcome = BROKEN
                record.detail = "idle-timeout" if isinstance(exc, TimeoutError) else "agent-hung-up"
                raise UpstreamResponseBroken(record.detail) from exc
            record.response_bytes += len(chunk)
            more = not response.content.at_eof()
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
        record.outcome = ANSWERED

    async def _learn_style(self, path: str) -> None:
        """Look up the error style for a call that is refused before its route is read."""
        try:
            style: ErrorStyle | None = (await self._gateway.routes.find(self._key, self._admit)).error_style
        except PodiumError as exc:
            style = exc.error_style
        if style is not None:
            self._gateway.error_styles.learn(path, style)

    async def _refuse(self, error: PodiumError, body: bytes, record: CallRecord, scope: HTTPScope, send: Send) -> None:
        """Answer with a JSON-RPC error object that carries the id of the call."""
        status = self._gateway.error_styles.status_of(error, scope["method"], scope["path"])
        record.refused(error, status)
        headers = refusal_headers(error)
        if record.request_id.isascii():
            headers[REQUEST_ID_HEADER] = record.request_id
        response = error_response(error, call_id=request_id(body), headers=headers, status=status)
        await response.to_asgi_response(app=None, request=Request(scope))(scope, _receive_nothing, send)


def _path(scope: HTTPScope) -> str:
    """The path as the caller has sent it."""
    return scope["raw_path"].decode("latin-1")


async def _receive_nothing() -> Any:  # noqa: ANN401 - the type that ASGI specifies
    """An ASGI `receive` for refusals: sending one does not wait for more of the request."""
    return {"type": "http.disconnect"}
