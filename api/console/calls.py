"""The panel that calls an agent: production or any version, two of them side by side. Answers stream."""

import json
from typing import Annotated

from litestar import get, post
from litestar.params import FromPath, QueryParameter
from litestar.response import Template
from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth.admission import Admission
from api.console.page import OnPage
from api.gateway.forward import Forward
from api.gateway.routes import route_key
from api.http.parameters import agent_uuid
from services.agents.queries import AgentView, DeploymentView, get_agent, list_deployments
from services.domain.identity import Identity
from services.errors import Unauthorized
from services.storage.database import in_transaction
from services.storage.pages import Page as Rows

TOKEN_HEADER = "x-podium-token"  # noqa: S105 - the name of a header
# What reaches the agent: neither what identifies the browser, nor the token of its session.
_PASSED = (b"content-type", b"content-length", b"accept", b"a2a-version", b"mcp-protocol-version", b"mcp-session-id")
VERSIONS = 100

_TEXT = "Hello"
_PART = {"type": "text", "author": "user", "content": _TEXT}
# By name: the body of a first call, and the headers that the protocol wants.
EXAMPLES = {
    "ACP: send a message": ({"method": "message/send", "params": {"content": _PART, "stream": True}}, {}),
    "A2A 1.0: send a message": (
        {"method": "SendStreamingMessage", "params": {"message": {
            "messageId": "console-1", "role": "ROLE_USER", "parts": [{"text": _TEXT}]}}},
        {"a2a-version": "1.0"},
    ),
    "A2A 0.3: send a message": (
        {"method": "message/stream", "params": {"message": {
            "messageId": "console-1", "role": "user", "kind": "message", "parts": [{"kind": "text", "text": _TEXT}]}}},
        {},
    ),
    "MCP: list tools": (
        {"method": "tools/list", "params": {}}, {"mcp-protocol-version": "2025-11-25"},
    ),
}  # fmt: skip


class Call:
    """A call of the panel: an ASGI application that forwards it without the headers of the browser."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the call until its end, or until the browser leaves."""
        headers = [(name, value) for name, value in scope["headers"] if name in _PASSED]
        cleaned = {**scope, "headers": headers, "query_string": b""}
        await self._forward(cleaned, receive, send)  # type: ignore[arg-type]  # the same keys


@get("/console/agents/{agent_id:str}/try", include_in_schema=False)
async def show_panel(
    agent_id: FromPath[str], page: OnPage, version: Annotated[str | None, QueryParameter()] = None
) -> Template:
    """The panel, with production on the left and this version on the right."""
    page.require("invoke")
    uuid = agent_uuid(agent_id)

    async def work(session: AsyncSession) -> tuple[AgentView, list[DeploymentView]]:
        view = await get_agent(session, uuid)
        page.require_agent(view.agent.name)
        return view, await list_deployments(session, uuid, Rows(limit=VERSIONS))

    view, versions = await in_transaction(page.resources.reads, work)
    ids = [each.deployment.id for each in versions]
    return page.show(
        "try.html",
        agent=view.agent,
        base=f"/console/agents/{uuid}",
        ids=ids,
        chosen=version if version in ids else None,
        examples=[
            (name, json.dumps({"jsonrpc": "2.0", "id": 1, **body}, indent=2), json.dumps(headers))
            for name, (body, headers) in EXAMPLES.items()
        ],
    )


@post("/console/agents/{agent_id:str}/call", include_in_schema=False, status_code=200)
async def call_agent(
    agent_id: FromPath[str], page: OnPage, version: Annotated[str | None, QueryParameter()] = None
) -> ASGIApp:
    """Forward a call to what serves the agent, or to this version. Raises `CrossOrigin`, `InsufficientScope`."""
    page.sessions.check_change(page.request, page.session, page.request.headers.get(TOKEN_HEADER, ""))
    page.require("invoke")
    key = route_key(agent_id=agent_id, deployment_id=version or None)

    async def identify() -> Identity:
        identity = await page.identify()
        if identity is None or not identity.may("invoke"):
            raise Unauthorized
        return identity

    return Call(
        Forward(page.resources.gateway, key, Admission(page.identity, identify, page.resources.callers.recognizes))
    )


ROUTES = [show_panel, call_agent]
