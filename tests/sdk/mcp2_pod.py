"""A server of MCP 2.x (streamable HTTP), run with the Python of MCP 2.x. It serves clients of 1.x, too, in sessions.

Without a session, it answers with JSON, or with SSE if the tool has sent a notification.
"""

import os
from typing import Annotated

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import Field

VERSION = os.environ["VERSION"]

mcp = MCPServer(VERSION, log_level="WARNING")
waits = {"begun": 0, "cancelled": 0}


@mcp.tool()
def version() -> str:
    """Return the version."""
    return VERSION


@mcp.tool()
async def report(context: Context) -> str:
    """Report progress to the client within the response (SSE)."""
    for done in (1, 2, 3):
        await context.report_progress(done, 3)
    return VERSION


@mcp.tool()
async def headers(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})], context: Context
) -> dict[str, list[str]]:
    """Return the headers of the call; the client repeats the region in one."""
    assert region
    received = context.request_context.request.headers
    return {name: received.getlist(name) for name in received}


@mcp.tool()
async def announce(context: Context) -> str:
    """Send a notification to the clients that listen."""
    await context.notify_tools_changed()
    return VERSION


@mcp.tool()
async def wait(aloud: bool, context: Context) -> str:  # noqa: FBT001 - an argument of a tool has a name on the wire
    """Answer after the gateway's timeout, with or without a notification before; count cancelled calls."""
    waits["begun"] += 1
    try:
        if aloud:
            await context.report_progress(1, 2)
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        waits["cancelled"] += 1
        raise
    return VERSION


@mcp.tool()
def waited() -> dict[str, int]:
    """Return how many calls of `wait` began, and how many were cancelled."""
    return waits


if __name__ == "__main__":
    mcp.run("streamable-http", host="127.0.0.1", port=int(os.environ["PORT"]))
