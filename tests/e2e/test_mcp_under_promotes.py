"""MCP sessions during continuous promotions: two API processes, and clients that open and close sessions."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count, cycle

import aiohttp
import pytest_asyncio
from aiohttp import web

from tests.integration.api.pods import Handler, running_pod
from tests.support.factories import a_body

PROMOTES = 30
CLIENTS = 6
CALLS = 6
RPC = "/agents/name/bot/rpc"
NAMED = "x-podium-deployment-id"


def keeping_sessions(version: str) -> Handler:
    """A server that accepts only the sessions that it has opened."""
    numbers, known = count(), set[str]()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        session = request.headers.get("mcp-session-id")
        if session is None:
            session = f"{version}-{next(numbers)}"
            known.add(session)
        elif session not in known:
            return web.Response(status=404)
        elif request.method == "DELETE":
            known.remove(session)
        return web.json_response({"version": version}, headers={"mcp-session-id": session})

    return answer


@pytest_asyncio.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A new connection for each call, so that none fails because the server has closed an idle connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as client:
        yield client


async def test_no_session_is_lost_to_a_promote(two_apis: list[str], client: aiohttp.ClientSession) -> None:
    """Each call of a session reaches its version; a session opened after the reply to a promote has the new version."""
    apis, ended = cycle(two_apis), asyncio.Event()
    versions: dict[str, int] = {"v1": 0, "v2": 0}

    async def call(method: str = "POST", session: str | None = None) -> tuple[str, str]:
        """Make a successful call; returns the version that answers, and the session."""
        headers = {} if session is None else {"mcp-session-id": session}
        async with client.request(method, f"{next(apis)}{RPC}", headers=headers) as response:
            assert response.status == 200, (method, session, response.status, await response.text())
            version = (await response.json())["version"]
            assert response.headers[NAMED] == version
            return version, response.headers["mcp-session-id"]

    async def open_and_close() -> None:
        while not ended.is_set():
            opened, session = await call()
            for _ in range(CALLS):
                assert await call(session=session) == (opened, session)
            await call("DELETE", session)
            versions[opened] += 1

    async with running_pod(keeping_sessions("v1")) as one, running_pod(keeping_sessions("v2")) as two:
        for name, pod in (("v1", one), ("v2", two)):
            body = a_body("bot", deployment_id=name, acp_url=pod.url)
            async with client.post(f"{two_apis[0]}/agents/register", json=body) as response:
                agent_id = (await response.json())["id"]
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(open_and_close())
            for number in range(PROMOTES):
                target = ("v2", "v1")[number % 2]
                promote = f"{next(apis)}/agents/{agent_id}/deployments/{target}/promote"
                async with client.post(promote) as response:
                    assert response.status == 200
                assert {version for version, _ in await asyncio.gather(call(), call())} == {target}
            ended.set()
    assert min(versions.values()) > 0, versions
