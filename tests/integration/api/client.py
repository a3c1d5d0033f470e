"""An HTTP client that sends requests exactly as given and returns answers unprocessed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from pydantic_core import from_json
from yarl import URL

from services.settings import Settings
from tests.support.apps import serving
from tests.support.factories import a_body

PROBLEM = "application/problem+json"
# A request left in flight by a failed test must not delay the next test.
DRAIN_TIMEOUT = timedelta(seconds=1)


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return from_json(self.body)

    def problem(self, status: int, reason: str, field: str | None = None) -> dict[str, Any]:
        """The problem document; asserts its status, reason and field."""
        assert self.status == status, self.body
        assert self.headers["content-type"] == PROBLEM
        assert self.json["type"] == f"urn:podium:problem:{reason}"
        assert self.json["status"] == status
        assert self.json["title"]
        assert self.json["detail"]
        assert self.json.get("field") == field
        problem: dict[str, Any] = self.json
        return problem

    def rpc_error(self, status: int, reason: str, *, sent: bool = False) -> dict[str, Any]:
        """The JSON-RPC error answer; asserts its status, reason and `sent`."""
        assert self.status == status, self.body
        assert self.headers["content-type"] == "application/json"
        assert self.json["jsonrpc"] == "2.0"
        assert self.json["error"]["message"]
        assert self.json["error"]["data"] == {"reason": reason, "sent": sent}
        assert self.headers.get("x-should-retry") == ("false" if sent else None)
        answer: dict[str, Any] = self.json
        return answer


@dataclass(frozen=True)
class Api:
    """A running API, as its callers see it."""

    url: str
    session: aiohttp.ClientSession

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The address, for connections without a client library."""
        url = URL(self.url)
        assert url.host is not None
        assert url.port is not None
        return url.host, url.port

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """Send one request; the path is sent without encoding it again."""
        target = URL(f"{self.url}{path}", encoded=True)
        async with self.session.request(method, target, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        """Send a GET."""
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        """Send a POST with this JSON body, or without a body."""
        return await self.call("POST", path, **({} if body is None else {"json": body}), **options)

    async def delete(self, path: str, **options: Any) -> Answer:
        """Send a DELETE."""
        return await self.call("DELETE", path, **options)

    async def register(self, name: str = "bot", deployment_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Register a pod; returns the agent of the answer."""
        answer = await self.post("/agents/register", a_body(name, deployment_id=deployment_id, **fields))
        assert answer.status == 200, answer.body
        agent: dict[str, Any] = answer.json
        return agent

    async def promote(self, agent: dict[str, Any], deployment_id: str) -> None:
        """Promote; asserts success."""
        answer = await self.post(f"/agents/{agent['id']}/deployments/{deployment_id}/promote")
        assert answer.status == 200, answer.body


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[Api]:
    """An API under a real uvicorn on a free port."""
    async with serving(settings.model_copy(update={"port": 0, "drain_timeout": DRAIN_TIMEOUT})) as server:
        # A new connection for each call: none can fail because the server has just closed an idle one.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            yield Api(f"http://{server.addresses[0]}", session)
