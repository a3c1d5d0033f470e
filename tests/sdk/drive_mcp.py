"""The client of the MCP SDK with a running Podium: prints what it received as one JSON object."""

import asyncio
import json
import logging
import sys
from contextlib import asynccontextmanager

import anyio
import httpx
from load_balancer import LoadBalancer
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client

TIMEOUT_SECONDS = 40


class Client:
    """A session of a client with an agent."""

    def __init__(self, session, protocol, notified, session_id):
        self.session = session
        self.protocol = protocol
        self.notified = notified
        self.session_id = session_id

    async def call(self, tool, **more):
        """Call the tool; returns its text."""
        answer = await self.session.call_tool(tool, **more)
        return answer.content[0].text


@asynccontextmanager
async def connected(url, balancer):
    """An open session; a DELETE ends it."""
    notified = asyncio.Event()

    async def listen(message):
        if getattr(getattr(message, "root", None), "method", "") == "notifications/resources/list_changed":
            notified.set()

    async with (
        httpx.AsyncClient(event_hooks=balancer.hooks, timeout=TIMEOUT_SECONDS) as http,
        streamable_http_client(url, http_client=http) as (read, write, session_id),
        ClientSession(read, write, message_handler=listen) as session,
    ):
        protocol = (await session.initialize()).protocolVersion
        yield Client(session, protocol, notified, session_id())


async def stay_across_a_promote(apis, url, promote):
    """Use a session before and after a promote, with its notifications; then open a new session."""
    balancer = LoadBalancer(*apis)
    progress = []

    async def on_progress(done, _total, _message):
        progress.append(done)

    async with connected(url, balancer) as client:
        before = [await client.call("version"), await client.call("count")]
        async with httpx.AsyncClient() as http:
            (await http.post(promote)).raise_for_status()
        after = [await client.call("version") for _ in range(4)]
        counted = await client.call("count")
        await client.call("announce")
        await asyncio.wait_for(client.notified.wait(), TIMEOUT_SECONDS)
        await client.call("report", progress_callback=on_progress)
        async with connected(url, new := LoadBalancer(*apis)) as other:
            fresh = [await other.call("version") for _ in range(4)]
            again = await client.call("version")
        old = client.session_id
    async with httpx.AsyncClient() as http:
        call = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        accept = {"accept": "application/json, text/event-stream", "mcp-session-id": old}
        ended = await http.post(url, json=call, headers=accept)
    return {
        "before": before,
        "after": after,
        "counted": counted,
        "progress": progress,
        "fresh": fresh,
        "again": again,
        "journal": balancer.journal,
        "journal_of_new": new.journal,
        "ended": [ended.status_code, ended.headers["x-podium-deployment-id"]],
    }


async def fail_once(url):
    """Whether a session is still usable after a call that timed out at the gateway."""
    told = None
    try:
        async with connected(url, LoadBalancer()) as client:
            with anyio.fail_after(TIMEOUT_SECONDS):
                try:
                    await client.call("hang")
                except McpError as error:
                    told = error.error.data
                return {"told": told, "then": await client.call("version")}
    except BaseException as error:  # noqa: BLE001 - any error ends the session
        return {"told": told, "lost": type(error).__name__}


async def say(url, tool, headers):
    """Call a tool with additional headers; returns its answer."""
    async with (
        httpx.AsyncClient(headers=headers, timeout=TIMEOUT_SECONDS) as http,
        streamable_http_client(url, http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        return json.loads((await session.call_tool(tool)).content[0].text)


async def main(first, second, agent_id):
    """Run all parts in sequence."""
    logging.disable(logging.CRITICAL)
    url = f"{first}/agents/name/mcp-bot/rpc"
    own = {"Mcp-Param-Region": "eu", "Authorization": "Bearer secret", "X-Custom": "mine"}
    answers = {
        "headers": await say(url, "headers", own),
        "promote": await stay_across_a_promote(
            [first, second], url, f"{first}/agents/{agent_id}/deployments/mcp-v2/promote"
        ),
    }
    failing = [fail_once(f"{first}/agents/name/{name}/rpc") for name in ("mcp-bot", "loud-bot")]
    answers["as_answers"], answers["as_http"] = await asyncio.gather(*failing)
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
