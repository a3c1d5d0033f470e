"""The MCP SDK's client against a running Podium: prints what it saw, as one JSON object."""

import asyncio
import json
import logging
import sys
from contextlib import asynccontextmanager

import anyio
import httpx
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client

PATIENCE_SECONDS = 40


class Alternating(httpx.AsyncHTTPTransport):
    """A load balancer's work: each request goes to the next of these APIs."""

    def __init__(self, apis):
        super().__init__()
        self.apis = [httpx.URL(api) for api in apis]
        self.journal = []

    async def handle_async_request(self, request):
        """Send it on, and note where it went and who answered."""
        api = self.apis[len(self.journal) % len(self.apis)]
        request.url = request.url.copy_with(host=api.host, port=api.port)
        self.journal.append(entry := {"method": request.method, "api": str(api)})
        response = await super().handle_async_request(request)
        entry |= {
            "deployment": response.headers.get("x-podium-deployment-id"),
            "type": response.headers.get("content-type", "").partition(";")[0],
            "status": response.status_code,
        }
        return response


class Client:
    """A client's session with an agent."""

    def __init__(self, session, heard, session_id):
        self.session = session
        self.heard = heard
        self.session_id = session_id

    async def call(self, tool, **more):
        """The text that the tool answered."""
        answer = await self.session.call_tool(tool, **more)
        return answer.content[0].text


@asynccontextmanager
async def connected(url, transport):
    """A session, opened; it is ended by a DELETE."""
    heard = asyncio.Event()

    async def listen(message):
        if getattr(getattr(message, "root", None), "method", "") == "notifications/resources/list_changed":
            heard.set()

    async with (
        httpx.AsyncClient(transport=transport, timeout=PATIENCE_SECONDS) as http,
        streamable_http_client(url, http_client=http) as (read, write, session_id),
        ClientSession(read, write, message_handler=listen) as session,
    ):
        await session.initialize()
        yield Client(session, heard, session_id())


async def stay_across_a_promote(apis, url, promote):
    """Calls before and after; what is told over the stream; and a session that begins afterwards."""
    transport = Alternating(apis)
    progress = []

    async def on_progress(done, _total, _message):
        progress.append(done)

    async with connected(url, transport) as client:
        before = [await client.call("version"), await client.call("count")]
        async with httpx.AsyncClient() as http:
            (await http.post(promote)).raise_for_status()
        after = [await client.call("version") for _ in range(4)]
        counted = await client.call("count")
        await client.call("announce")
        await asyncio.wait_for(client.heard.wait(), PATIENCE_SECONDS)
        await client.call("report", progress_callback=on_progress)
        async with connected(url, new := Alternating(apis)) as other:
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
        "journal": transport.journal,
        "journal_of_new": new.journal,
        "ended": [ended.status_code, ended.headers["x-podium-deployment-id"]],
    }


async def fail_once(url):
    """What a client has left after the gateway could not get an answer in time."""
    told = None
    try:
        async with connected(url, httpx.AsyncHTTPTransport()) as client:
            with anyio.fail_after(PATIENCE_SECONDS):
                try:
                    await client.call("hang")
                except McpError as error:
                    told = error.error.data
                return {"told": told, "then": await client.call("version")}
    except BaseException as error:  # noqa: BLE001 - whatever ends the session
        return {"told": told, "lost": type(error).__name__}


async def say(url, tool, headers):
    """The answer to a client that sends headers of its own."""
    async with (
        httpx.AsyncClient(headers=headers, timeout=PATIENCE_SECONDS) as http,
        streamable_http_client(url, http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        return json.loads((await session.call_tool(tool)).content[0].text)


async def main(first, second, agent_id):
    """Everything, one after the other."""
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
