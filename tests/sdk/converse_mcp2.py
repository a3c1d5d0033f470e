"""The client of MCP 2.x with the servers at these URLs: prints what it saw of each conversation, as one JSON list."""

import asyncio
import json
import logging
import sys

from drive_mcp2 import call, connected, reported
from load_balancer import LoadBalancer


async def converse(url):
    """A whole conversation; returns what the client saw of it."""
    balancer = LoadBalancer()
    async with connected(url, balancer) as client:
        seen = {
            "protocol": client.protocol_version,
            "server": client.server_info.name,
            "tools": sorted(tool.name for tool in (await client.list_tools()).tools),
            "version": await call(client, "version"),
            "reported": await reported(client),
            "unknown": await call(client, "no-such-tool"),
        }
        await balancer.settle()
    return {**seen, "exchanges": balancer.exchanges()}


async def main(*urls):
    """One conversation after another."""
    logging.disable(logging.CRITICAL)
    print(json.dumps([await converse(url) for url in urls]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
