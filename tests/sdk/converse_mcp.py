"""The client of MCP 1.x with the servers at these URLs: prints what it saw of each conversation, as one JSON list."""

import asyncio
import json
import logging
import sys

from drive_mcp import connected
from load_balancer import LoadBalancer


async def converse(url):
    """A whole conversation; returns what the client saw of it."""
    balancer = LoadBalancer()
    progress = []

    async def on_progress(done, _total, _message):
        progress.append(done)

    async with connected(url, balancer) as client:
        seen = {
            "protocol": client.protocol,
            "tools": sorted(tool.name for tool in (await client.session.list_tools()).tools),
            "version": await client.call("version"),
            "reported": [await client.call("report", progress_callback=on_progress), progress],
            "unknown": await client.call("no-such-tool"),
        }
        await balancer.settle()
    return {**seen, "exchanges": balancer.exchanges()}


async def main(*urls):
    """One conversation after another."""
    logging.disable(logging.CRITICAL)
    print(json.dumps([await converse(url) for url in urls]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
