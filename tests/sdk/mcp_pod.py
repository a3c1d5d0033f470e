"""A server of the MCP SDK (streamable HTTP), run with the Python of the SDKs. It keeps sessions in memory."""

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
    """Return the version."""
    return VERSION


@mcp.tool()
def count(context: Context) -> int:
    """Return the number of calls of this tool in this session."""
    calls[id(context.session)] = calls.get(id(context.session), 0) + 1
    return calls[id(context.session)]


@mcp.tool()
async def announce(context: Context) -> str:
    """Send the client a notification on its GET stream."""
    await context.session.send_resource_list_changed()
    return VERSION


@mcp.tool()
async def report(context: Context) -> str:
    """Report progress to the client within the response (SSE)."""
    for done in (1, 2, 3):
        await context.report_progress(done, 3)
    return VERSION


@mcp.tool()
async def headers(context: Context) -> dict[str, list[str]]:
    """Return the headers of the call."""
    request = context.request_context.request
    return {name: request.headers.getlist(name) for name in request.headers}


@mcp.tool()
async def hang() -> str:
    """Answer after the gateway's timeout."""
    await anyio.sleep(60)
    return VERSION


if __name__ == "__main__":
    mcp.run("streamable-http")
