"""The client of MCP 2.x in a conversation of its own, by a header: prints what it received as one JSON object."""

import asyncio
import json
import logging
import sys

import httpx2
from drive_mcp2 import TIMEOUT_SECONDS, use
from load_balancer import LoadBalancer
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main(first, second, agent_id):
    """Use the client before and after a promote."""
    logging.disable(logging.CRITICAL)
    balancer = LoadBalancer(first, second)
    async with (
        httpx2.AsyncClient(
            event_hooks=balancer.hooks, timeout=TIMEOUT_SECONDS, headers={"x-podium-session": "mine"}
        ) as http,
        Client(streamable_http_client(f"{first}/agents/name/new-bot/rpc", http_client=http)) as client,
    ):
        before = await use(client, balancer)
        async with httpx2.AsyncClient() as other:
            (await other.post(f"{first}/agents/{agent_id}/deployments/new-v2/promote")).raise_for_status()
        after = await use(client, balancer)
    print(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
