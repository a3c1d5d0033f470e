"""A production pod dies while real Podium processes run: what callers and consumers get, and how soon."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest
from aio_pika.abc import AbstractConnection
from aiohttp import web

from services.settings import Settings
from tests.integration.api.pods import Pod, running_pod
from tests.support.broker import a_consumer
from tests.support.factories import a_body
from tests.support.processes import api_process, worker_process
from tests.support.waiting import eventually

INTERVAL, THRESHOLD = 1.0, 3
# The documented time in addition to the intervals; the test allows more for a busy machine.
DOCUMENTED_SECONDS, ALLOWED_SECONDS = 1, 10
CALL = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}}


@asynccontextmanager
async def podium(settings: Settings, folder: Path) -> AsyncIterator[str]:
    """An API, a relay and two janitors, each in its own process."""
    often = {"PODIUM_PROBE_INTERVAL": str(INTERVAL), "PODIUM_PROBE_THRESHOLD": str(THRESHOLD)}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(api_process(settings, folder))
        for names in ("relay janitor", "janitor"):
            await stack.enter_async_context(worker_process(settings, folder, names, **often))
        yield url


@asynccontextmanager
async def a_pod_to_stop(name: str) -> AsyncIterator[tuple[Pod, AsyncExitStack]]:
    """A pod that answers with its name until the stack is closed."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": name})

    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(running_pod(answer)), stack


class Caller:
    """A user of the API."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = http

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; returns status and JSON of the response."""
        async with self.http.request(method, f"{self.url}{path}", json=body) as response:
            return response.status, await response.json(content_type=None)

    async def register(self, deployment_id: str, pod: Pod) -> str:
        """Register a version; returns the id of its agent."""
        status, agent = await self.ask("POST", "/agents/register", a_body(deployment_id=deployment_id, acp_url=pod.url))
        assert status == 200, agent
        return str(agent["id"])

    async def call(self) -> tuple[int, Any]:
        """Call production; returns status and JSON of the response."""
        return await self.ask("POST", "/agents/name/support-bot/rpc", CALL)

    async def until(self, expected: Any, *, since: float) -> float:
        """The seconds from `since` until a call returns this result, or is refused with this reason."""

        async def answered() -> bool:
            _, body = await self.call()
            return expected in {body.get("result"), body.get("error", {}).get("data", {}).get("reason")}

        await eventually(answered, f"production answers {expected}")
        return monotonic() - since


@pytest.mark.parametrize("policy", ["hold", "rollback"])
async def test_a_pod_of_production_dies(
    broker: AbstractConnection, settings: Settings, client: aiohttp.ClientSession, tmp_path: Path, policy: str
) -> None:
    """It becomes Failed after the threshold, with an event. Calls get the reason, or the previous version serves."""
    consumer = await a_consumer(broker)
    async with podium(settings, tmp_path) as url, a_pod_to_stop("v1") as (v1, _), a_pod_to_stop("v2") as (v2, life):
        caller = Caller(url, client)
        agent_id = await caller.register("v1", v1)
        await caller.register("v2", v2)
        await caller.ask("PATCH", f"/agents/{agent_id}", {"on_failure": policy, "auto_promote": "always"})
        await caller.ask("POST", f"/agents/{agent_id}/deployments/v2/promote")
        await caller.until("v2", since=monotonic())
        await eventually(lambda: is_probed(v2), "v2 is probed")

        await life.aclose()
        died = monotonic()
        if policy == "hold":
            took = await caller.until("deployment-unavailable", since=died)
            status, body = await caller.call()
            assert status == 503
            assert "v2 of agent support-bot is Failed: 3 probes in a row failed" in body["error"]["message"]
        else:
            took = await caller.until("v1", since=died)
        [failed] = await consumer.until(type="podium.deployment.failed.v1")
        assert (failed.subject, failed.data["is_production"]) == ("v2", True)
        assert took < INTERVAL * THRESHOLD + ALLOWED_SECONDS
        print(  # noqa: T201 - figures
            f"{policy}: {took:.2f} s after the death; documented: {INTERVAL * THRESHOLD + DOCUMENTED_SECONDS:.1f} s"
            + (" and one interval" if policy == "rollback" else "")
        )
        if policy == "rollback":
            await caller.register("v3", v1)
            _, agent = await caller.ask("GET", f"/agents/{agent_id}")
            assert (agent["production_deployment_id"], agent["auto_promote_paused"]) == ("v1", True)
            _, ledger = await caller.ask("GET", f"/agents/{agent_id}/promotions")
            assert [(row["cause"], row["actor"]) for row in ledger[:2]] == [("rollback", "podium"), ("manual", "local")]


async def is_probed(pod: Pod) -> bool:
    """Whether a probe has reached the pod."""
    return any(each.target == "/healthz" for each in pod.seen)
