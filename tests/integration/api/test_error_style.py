"""Error styles: errors of the gateway as HTTP errors, or as JSON-RPC answers with status 200."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.gateway.gateway import REMEMBERED_PATHS, ErrorStyles
from services.errors import AgentNotFound, Unavailable
from services.storage.database import Sessions
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, raw_pod, refused_address, running_pod

RPC = "/agents/name/bot/rpc"
CALL = {"jsonrpc": "2.0", "id": 7, "method": "x"}


def assert_told(answer: Answer, reason: str, *, sent: bool = False, call_id: object = 7) -> None:
    """Assert that the answer is a JSON-RPC error with status 200."""
    assert answer.rpc_error(200, reason, sent=sent)["id"] == call_id


@pytest_asyncio.fixture
async def quick(serve: Serve) -> Api:
    """An API with short timeouts."""
    return await serve(first_byte_timeout=timedelta(milliseconds=300), rpc_max_bytes=1000)


@pytest_asyncio.fixture
async def nowhere() -> AsyncIterator[str]:
    """An address that refuses connections."""
    async with refused_address() as url:
        yield url


@pytest.mark.parametrize("deployment_id", ["v1", None], ids=["deployment", "legacy agent"])
async def test_failures_as_answers_to_calls(quick: Api, nowhere: str, deployment_id: str | None) -> None:
    """HTTP 200 with the id of the call, for refused calls, failed connections and timeouts."""
    where: dict[str, Any] = {"deployment_id": deployment_id, "error_style": "jsonrpc"}
    agent = await quick.register("bot", acp_url=nowhere, **where)
    # The first call: nothing about the agent is cached yet.
    assert_told(await quick.post(RPC, {**CALL, "filling": "x" * 1000}), "message-too-large", call_id=None)
    for path in (RPC, f"/agents/{agent['id']}/rpc"):
        assert_told(await quick.post(path, CALL), "agent-unreachable")
    assert_told(await quick.post(RPC, {**CALL, "id": "a"}), "agent-unreachable", call_id="a")
    async with raw_pod(None, close=False) as silent:
        await quick.register("bot", acp_url=silent.url, **where)
        assert_told(await quick.post(RPC, CALL), "first-byte-timeout", sent=True)
    async with raw_pod(b"no HTTP") as broken:
        await quick.register("bot", acp_url=broken.url, **where)
        assert_told(await quick.post(RPC, CALL), "agent-protocol-error", sent=True)


async def test_deployments_that_cannot_be_called(api: Api, sessions: Sessions, nowhere: str) -> None:
    """Failed and deleted deployments are refused in the style of their own registration."""
    agent = await api.register("bot", "v1", acp_url=nowhere, error_style="jsonrpc")
    await api.register("bot", "v2", acp_url=nowhere, error_style="jsonrpc")
    await api.register("bot", "v3", acp_url=nowhere)
    deployments = f"/agents/{agent['id']}/deployments"
    async with sessions.begin() as session:
        await session.execute(text("UPDATE deployments SET status = 'Failed'"))
    failed = await api.post(RPC, CALL)
    assert_told(failed, "deployment-unavailable")
    assert int(failed.headers["retry-after"]) > 0
    (await api.post(f"{deployments}/v3/rpc", CALL)).rpc_error(503, "deployment-unavailable")
    await api.delete(f"{deployments}/v2")
    assert_told(await api.post(f"{deployments}/v2/rpc", CALL), "deployment-deleted")
    await api.delete(f"/agents/{agent['id']}")
    assert_told(await api.post(f"{deployments}/v1/rpc", CALL), "agent-deleted")
    (await api.post(f"{deployments}/v3/rpc", CALL)).rpc_error(410, "agent-deleted")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_get_and_delete_keep_their_status(api: Api, nowhere: str, method: str) -> None:
    """200 to a GET would mean an empty stream, 200 to a DELETE a closed session."""
    await api.register("bot", "v1", acp_url=nowhere, error_style="jsonrpc")
    (await api.call(method, RPC)).rpc_error(502, "agent-unreachable")


async def test_the_agent_s_own_errors_stay_what_they_are(api: Api) -> None:
    """The style applies to errors of the gateway only."""

    async def failing(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=500, text="mine")

    async with running_pod(failing) as pod:
        await api.register("bot", "v1", acp_url=pod.url, error_style="jsonrpc")
        answer = await api.post(RPC, CALL)
    assert (answer.status, answer.body) == (500, b"mine")


async def test_the_style_is_that_of_the_newest_registration(api: Api, nowhere: str) -> None:
    """A registration without a style restores the default."""
    await api.register("bot", "v1", acp_url=nowhere, error_style="jsonrpc")
    assert_told(await api.post(RPC, CALL), "agent-unreachable")
    await api.register("bot", "v1", acp_url=nowhere)
    (await api.post(RPC, CALL)).rpc_error(502, "agent-unreachable")


async def test_the_style_is_known_while_the_database_is_away(serve: Serve, engine: AsyncEngine, pod: Pod) -> None:
    """The last known style of each path applies, so clients keep their sessions during an outage."""
    api = await serve(route_timeout=timedelta(milliseconds=300))
    await api.register("bot", "v1", acp_url=pod.url, error_style="jsonrpc")
    await api.register("other", "o1", acp_url=pod.url)
    other = "/agents/name/other/rpc"
    assert {(await api.post(path, CALL)).status for path in (RPC, other)} == {200}
    async with engine.connect() as locking:
        await locking.execute(text("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE"))
        told, refused = await asyncio.gather(api.post(RPC, CALL), api.post(other, CALL))
        await locking.rollback()
    assert_told(told, "database-unavailable")
    refused.rpc_error(503, "database-unavailable")


def test_what_is_remembered_is_for_agents_that_are_still_there() -> None:
    """A free name is answered with 404, whatever style its former agent had."""
    styles = ErrorStyles()
    styles.learn(RPC, "jsonrpc")
    assert styles.status_of(AgentNotFound(), "POST", RPC) == 404
    assert styles.status_of(Unavailable(), "POST", RPC) == 200


def test_what_is_remembered_is_bounded() -> None:
    """The most recent paths stay; a path whose style changed back is removed at once."""
    styles = ErrorStyles()
    for number in range(REMEMBERED_PATHS):
        styles.learn(f"/{number}", "jsonrpc")
    styles.learn("/0", "jsonrpc")
    styles.learn("/new", "jsonrpc")
    statuses = {path: styles.status_of(Unavailable(), "POST", path) for path in ("/0", "/1", "/2", "/new")}
    assert statuses == {"/0": 200, "/1": 503, "/2": 200, "/new": 200}
    styles.learn("/0", "http")
    assert styles.status_of(Unavailable(), "POST", "/0") == 503
