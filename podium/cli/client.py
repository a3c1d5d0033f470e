"""The HTTP API as the command line uses it: answers as JSON, refusals as one sentence with an exit code."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from pydantic_core import from_json
from yarl import URL

from contracts.fields import TRACEPARENT_PATTERN, check_service_address
from podium.cli.exits import ExitCode, Failure, code_of_status
from podium.cli.segments import agent_segment, deployment_segment, is_agent_id

CONNECT_SECONDS = 5
# Longer than the longest wait of the API itself, so that its own answer is what one sees.
ANSWER_SECONDS = 60
GENERATION_HEADER = "x-podium-generation"
PROBLEM_TYPE = "application/problem+json"
STREAM_TYPE = "text/event-stream"

Json = dict[str, Any]


class Refused(Failure):
    """The API said no; `reason` is the stable word for why."""

    def __init__(self, sentence: str, status: int, reason: str) -> None:
        super().__init__(sentence, code_of_status(status))
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """What the API answered: its JSON, and the generation that the change left the agent at."""

    body: Any
    generation: int | None


class Api:
    """A Podium API. Everything raises `Refused` for a refusal and `Failure` where nobody answers."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, **query: str | int | None) -> Any:  # noqa: ANN401 - JSON
        """The answer to a question."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return (await self.call("GET", path, params=given)).body

    async def call(self, method: str, path: str, **options: Any) -> Answer:  # noqa: ANN401 - as aiohttp takes them
        """One request and its whole answer."""
        async with self.request(method, path, **options) as response:
            content = await response.read()
            self._raise_refusal(response, content)
            generation = response.headers.get(GENERATION_HEADER)
            return Answer(self._json(response, content), int(generation) if generation else None)

    async def change(self, path: str, body: Json, *, if_generation: int | None = None) -> Answer:
        """Post JSON; with a generation, only if the agent is still at it."""
        headers = {} if if_generation is None else {"if-match": f'"{if_generation}"'}
        return await self.call("POST", path, json=body, headers=headers)

    async def readiness(self) -> Json:
        """The API's parts and whether each answers, also while it is not ready."""
        async with self.request("GET", "/health/ready") as response:
            content = await response.read()
            if response.status != 503:  # noqa: PLR2004 - HTTP Service Unavailable, which says what is missing
                self._raise_refusal(response, content)
            parts: Json = self._json(response, content).get("parts", {})
            return parts

    async def agent(self, name_or_id: str) -> Json:
        """The agent of this name or id."""
        if is_agent_id(name_or_id):
            try:
                return await self._object(f"/agents/{name_or_id}")
            except Refused as refusal:
                if refusal.code != ExitCode.NOT_FOUND:
                    raise
        try:
            return await self._object(f"/agents/name/{agent_segment(name_or_id)}")
        except Refused as refusal:
            if refusal.reason != "agent-not-found":
                raise
            raise Refused(
                f"There is no agent {name_or_id!r}: 'podium agents' lists all, and "
                f"'podium registrations --agent {name_or_id}' says what became of its announcements.",
                404,
                refusal.reason,
            ) from None

    async def deployment(self, deployment_id: str) -> Json:
        """The deployment of this id, of whichever agent."""
        try:
            return await self._object(f"/deployments/{deployment_segment(deployment_id)}")
        except Refused as refusal:
            if refusal.reason != "deployment-not-found":
                raise
            raise Refused(
                f"There is no deployment {deployment_id!r}: 'podium deployments AGENT' lists those of an agent, and "
                "'podium registrations' says what became of announcements.",
                404,
                refusal.reason,
            ) from None

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # noqa: ANN401 - as aiohttp takes them
        """One request; its answer may still be on its way."""
        try:
            async with self._session.request(method, URL(f"{self.url}{path}", encoded=True), **options) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise Failure(f"Podium at {self.url} {_why(error)}", ExitCode.UNAVAILABLE) from error

    @asynccontextmanager
    async def stream(self, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # noqa: ANN401 - as aiohttp takes them
        """Server-Sent Events as they come, for as long as they do."""
        patient = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
        async with self.request("GET", path, timeout=patient, **options) as response:
            if not response.ok:
                self._raise_refusal(response, await response.read())
            if response.content_type != STREAM_TYPE:
                raise self._stranger(response.content_type)
            yield response

    async def _object(self, path: str) -> Json:
        answer: Json = await self.get(path)
        return answer

    def _raise_refusal(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        if response.ok:
            return
        if response.content_type != PROBLEM_TYPE:
            raise self._stranger(f"HTTP {response.status}")
        problem = self._parsed(content)
        if response.status == 401:  # noqa: PLR2004 - HTTP Unauthorized
            sentence = f"{self.url} takes callers with a valid key only: pass --api-key or set PODIUM_API_KEY."
        else:
            sentence = problem.get("detail") or f"{self.url} answered HTTP {response.status}."
        raise Refused(sentence, response.status, str(problem.get("type")).rpartition(":")[2])

    def _json(self, response: aiohttp.ClientResponse, content: bytes) -> Any:  # noqa: ANN401 - JSON
        if response.content_type != "application/json":
            raise self._stranger(response.content_type)
        return self._parsed(content)

    def _parsed(self, content: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return from_json(content)
        except ValueError:
            raise self._stranger("broken JSON") from None

    def _stranger(self, what: str) -> Failure:
        return Failure(f"{self.url} answers with {what}, not as Podium does: check --api-url.")


@asynccontextmanager
async def open_api(url: str, key: str | None = None) -> AsyncIterator[Api]:
    """The API at this address; nothing is connected to before it is asked."""
    try:
        host = urlsplit(check_service_address(url)).hostname or ""
    except ValueError as error:
        raise Failure(f"The API's address {url!r} {error}: see --api-url.", ExitCode.USAGE) from None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    trace = os.environ.get("TRACEPARENT", "")
    if re.fullmatch(TRACEPARENT_PATTERN, trace):
        headers["traceparent"] = trace
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
    # A proxy is never the way to this machine itself.
    proxies = not _is_loopback(host)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=proxies) as session:
        yield Api(url, session)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time: try again, or ask 'podium doctor'."
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be reached: is it running ('podium up'), and is --api-url right?"
    return f"broke the connection off ({type(error).__name__}): try again."


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
