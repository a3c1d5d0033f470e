"""The client of MCP 2.x with a running Podium: prints what it received as one JSON object."""

import asyncio
import json
import logging
import sys
from contextlib import asynccontextmanager

import httpx2
from load_balancer import LoadBalancer
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

TIMEOUT_SECONDS = 40
# The client encodes what is not ASCII.
REGIONS = ("eu", "Zürich")


@asynccontextmanager
async def connected(url, balancer):
    """An open client."""
    async with (
        httpx2.AsyncClient(event_hooks=balancer.hooks, timeout=TIMEOUT_SECONDS) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def call(client, tool, **arguments):
    """Call the tool; returns its text."""
    return (await client.call_tool(tool, arguments)).content[0].text


async def reported(client):
    """Call the tool that reports progress; returns its answer and the reports."""
    progress = []

    async def on_progress(done, _total, _message):
        progress.append(done)

    answer = await client.call_tool("report", progress_callback=on_progress)
    return [answer.content[0].text, progress]


async def heard(subscription):
    """Wait for a notification; returns its kind."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return type(await anext(aiter(subscription))).__name__


async def mirrored(client, balancer):
    """Call a tool with an argument that is repeated in a header; returns the `mcp-*` headers sent and received."""
    calls = []
    for region in REGIONS:
        received = json.loads(await call(client, "headers", region=region))
        calls.append(
            {
                "sent": balancer.journal[-1]["sent"],
                "received": [[name, value] for name, values in received.items() for value in values if "mcp-" in name],
            }
        )
    return calls


async def leave(client, aloud):
    """Cancel a call that has begun; returns when the server has cancelled it, too."""
    waits = json.loads(await call(client, "waited"))
    waiting = asyncio.create_task(call(client, "wait", aloud=aloud))
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while json.loads(await call(client, "waited"))["begun"] == waits["begun"]:
            await asyncio.sleep(0.05)
        waiting.cancel()
        while json.loads(await call(client, "waited"))["cancelled"] == waits["cancelled"]:
            await asyncio.sleep(0.05)


async def use(client, balancer):
    """One of each kind of call; returns the answers, and the journal of these calls alone."""
    begin = len(balancer.journal)
    used = {
        "versions": [await call(client, "version") for _ in range(4)],
        "reported": await reported(client),
        "headers": await mirrored(client, balancer),
    }
    async with client.listen(tools_list_changed=True) as subscription:
        await call(client, "announce")
        used["heard"] = await heard(subscription)
    return {**used, "journal": balancer.journal[begin:]}


async def go_through_a_promote(apis, agent, url):
    """Use one client before and after a promote, and a stream of notifications that is open across it."""
    balancer = LoadBalancer(*apis)
    async with connected(url, balancer) as client:
        await client.list_tools()
        before = await use(client, balancer)
        for aloud in (True, False):
            await leave(client, aloud)
        async with client.listen(tools_list_changed=True) as old:
            async with httpx2.AsyncClient() as http:
                (await http.post(f"{agent}/deployments/new-v2/promote")).raise_for_status()
            after = await use(client, balancer)
            async with connected(f"{agent}/deployments/new-v1/rpc", LoadBalancer()) as client_of_old:
                await call(client_of_old, "announce")
            return {"before": before, "after": after, "heard_of_old": await heard(old)}


async def fail_once(url):
    """A call that times out at the gateway, then another one, with the same client."""
    async with connected(url, LoadBalancer()) as client:
        try:
            await call(client, "wait", aloud=False)
        except MCPError as error:
            return {"error": error.error.data, "then": await call(client, "version")}


async def main(first, second, agent_id):
    """Run all parts in sequence."""
    logging.disable(logging.CRITICAL)
    names = f"{first}/agents/name"
    answers = await go_through_a_promote([first, second], f"{first}/agents/{agent_id}", f"{names}/new-bot/rpc")
    failing = [fail_once(f"{names}/{name}/rpc") for name in ("new-bot", "loud-bot")]
    print(json.dumps({**answers, "failed": await asyncio.gather(*failing)}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
