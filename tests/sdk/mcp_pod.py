"""A server as the MCP SDK makes it (streamable HTTP), run with the SDKs' own Python; it keeps sessions in memory."""

import os

import anyio
from mcp.server.fastmcp import Context, FastMCP

VERSION = os.environ["VERSION"]

mcp = FastMCP(
    VERSION,
    host="127.0.0.1",
    port=int(os.environ["PORT"]),
    json_response=os.environ.get("ANSWERS") == "json",
    log_level="WARNING",
)
calls = {}


@mcp.tool()
def version() -> str:
    """Say which version answers."""
    return VERSION


@mcp.tool()
def count(context: Context) -> int:
    """Count this session's calls of this tool."""
    calls[id(context.session)] = calls.get(id(context.session), 0) + 1
    return calls[id(context.session)]


@mcp.tool()
async def announce(context: Context) -> str:
    """Tell the client something on the stream that it listens to (GET)."""
    await context.session.send_resource_list_changed()
    return VERSION


@mcp.tool()
async def report(context: Context) -> str:
    """Tell the client of progress within the answer (SSE)."""
    for done in (1, 2, 3):
        await context.report_progress(done, 3)
    return VERSION


@mcp.tool()
async def headers(context: Context) -> dict[str, list[str]]:
    """Say which headers the call had."""
    request = context.request_context.request
    return {name: request.headers.getlist(name) for name in request.headers}


@mcp.tool()
async def hang() -> str:
    """Answer too late."""
    await anyio.sleep(60)
    return VERSION


if __name__ == "__main__":
    mcp.run("streamable-http")
