"""A client of the HTTP API: responses as JSON, refusals as one sentence with an exit code."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

import aiohttp
from pydantic_core import from_json
from yarl import URL

from contracts.fields import (
    AGENT_NAME_PATTERN,
    DEPLOYMENT_ID_PATTERN,
    TRACEPARENT_PATTERN,
    check_service_address,
    is_loopback,
)
from podium.cli.exits import ExitCode, Failure, code_of_status

CONNECT_SECONDS = 5
# Longer than every timeout inside the API, so that the API's own error arrives first.
RESPONSE_SECONDS = 60
GENERATION_HEADER = "x-podium-generation"
PROBLEM_TYPE = "application/problem+json"
STREAM_TYPE = "text/event-stream"

Json = dict[str, Any]


class Refused(Failure):
    """The API refused a request; `reason` is the stable name of its error."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message, code_of_status(status))
        self.reason = reason


@dataclass(frozen=True)
class Response:
    """A response of the API: its JSON, and the agent's generation after a change."""

    body: Any
    generation: int | None


class Api:
    """The API of one Podium. Its methods raise `Refused` for an error of the API, else `Failure`."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, **query: str | int | None) -> Any:  # noqa: ANN401 - JSON
        """The JSON at a path; query parameters that are None are left out."""
        parameters = {name: str(value) for name, value in query.items() if value is not None}
        return (await self.call("GET", path, params=parameters)).body

    async def call(self, method: str, path: str, **options: Any) -> Response:  # noqa: ANN401 - options of aiohttp
        """Send one request and read its whole response."""
        async with self.request(method, path, **options) as response:
            content = await response.read()
            self._raise_refusal(response, content)
            generation = response.headers.get(GENERATION_HEADER)
            return Response(self._json(response, content), int(generation) if generation else None)

    async def change(self, path: str, body: Json, *, if_generation: int | None = None) -> Response:
        """Post JSON. With a generation, the API refuses the change if the agent has another generation."""
        headers = {} if if_generation is None else {"if-match": f'"{if_generation}"'}
        return await self.call("POST", path, json=body, headers=headers)

    async def readiness(self) -> Json:
        """The state of each server that the API needs, also if the API is not ready."""
        async with self.request("GET", "/health/ready") as response:
            content = await response.read()
            if response.status != 503:  # noqa: PLR2004 - HTTP Service Unavailable: the body has the states
                self._raise_refusal(response, content)
            parts: Json = self._json(response, content).get("parts", {})
            return parts

    async def agent(self, name_or_id: str) -> Json:
        """The agent with this name or id."""
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
                f"There is no agent {name_or_id!r}: 'podium agents' lists all agents, and "
                f"'podium registrations --agent {name_or_id}' shows the outcome of its announcements.",
                404,
                refusal.reason,
            ) from None

    async def deployment(self, deployment_id: str) -> Json:
        """The deployment with this id, of any agent."""
        try:
            return await self._object(f"/deployments/{deployment_segment(deployment_id)}")
        except Refused as refusal:
            if refusal.reason != "deployment-not-found":
                raise
            raise Refused(
                f"There is no deployment {deployment_id!r}: 'podium deployments AGENT' lists those of an agent, and "
                "'podium registrations' shows the outcome of announcements.",
                404,
                refusal.reason,
            ) from None

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # noqa: ANN401 - options of aiohttp
        """Send one request; the body of the response is not read yet. Errors of the API are not raised."""
        try:
            async with self._session.request(method, URL(f"{self.url}{path}", encoded=True), **options) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise Failure(f"Podium at {self.url} {_reason_of(error)}", ExitCode.UNAVAILABLE) from error

    @asynccontextmanager
    async def stream(self, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # noqa: ANN401 - options of aiohttp
        """Open a stream of Server-Sent Events, without a limit on its whole duration."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=RESPONSE_SECONDS)
        async with self.request("GET", path, timeout=timeout, **options) as response:
            if not response.ok:
                self._raise_refusal(response, await response.read())
            if response.content_type != STREAM_TYPE:
                raise self._not_podium(response.content_type)
            yield response

    async def _object(self, path: str) -> Json:
        found: Json = await self.get(path)
        return found

    def _raise_refusal(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        if response.ok:
            return
        if response.content_type != PROBLEM_TYPE:
            raise self._not_podium(f"HTTP {response.status}")
        problem = self._parse(content)
        if response.status == 401:  # noqa: PLR2004 - HTTP Unauthorized
            message = f"{self.url} requires a valid key: pass --api-key or set PODIUM_API_KEY."
        else:
            message = problem.get("detail") or f"{self.url} answered HTTP {response.status}."
        raise Refused(message, response.status, str(problem.get("type")).rpartition(":")[2])

    def _json(self, response: aiohttp.ClientResponse, content: bytes) -> Any:  # noqa: ANN401 - JSON
        if response.content_type != "application/json":
            raise self._not_podium(response.content_type)
        return self._parse(content)

    def _parse(self, content: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return from_json(content)
        except ValueError:
            raise self._not_podium("invalid JSON") from None

    def _not_podium(self, received: str) -> Failure:
        return Failure(f"{self.url} answered with {received}, so it is probably not Podium: check --api-url.")


@asynccontextmanager
async def open_api(url: str, key: str | None = None) -> AsyncIterator[Api]:
    """The API at this URL. The first request opens the connection. Raises `Failure` for an invalid URL."""
    try:
        host = urlsplit(check_service_address(url)).hostname or ""
    except ValueError as error:
        raise Failure(f"The address of the API, {url!r}, {error}: see --api-url.", ExitCode.USAGE) from None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    trace = os.environ.get("TRACEPARENT", "")
    if re.fullmatch(TRACEPARENT_PATTERN, trace):
        headers["traceparent"] = trace
    timeout = aiohttp.ClientTimeout(total=RESPONSE_SECONDS, sock_connect=CONNECT_SECONDS)
    # A proxy cannot reach the loopback addresses of this machine.
    use_proxy = not is_loopback(host)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=use_proxy) as session:
        yield Api(url, session)


def is_agent_id(text: str) -> bool:
    """Whether the text has the form of an agent's id. An agent's name can have this form, too."""
    return _is_uuid(text)


def agent_segment(name: str) -> str:
    """The agent's name as a segment of a path. Raises `Failure` for an invalid name."""
    return _segment(name, AGENT_NAME_PATTERN, "is not a name or id of an agent: use a-z, 0-9 and hyphens")


def deployment_segment(deployment_id: str) -> str:
    """The deployment's id as a segment of a path. Raises `Failure` for an invalid id."""
    return _segment(deployment_id, DEPLOYMENT_ID_PATTERN, "is not a deployment id: use letters, digits, '.', '_', '-'")


def parked_segment(parked_id: str) -> str:
    """The parked message's id as a segment of a path. Raises `Failure` for an invalid id."""
    if not _is_uuid(parked_id):
        raise Failure(f"{parked_id!r} is not the id of a parked message: see 'podium parked list'.", ExitCode.USAGE)
    return parked_id.lower()


def webhook_segment(webhook_id: str) -> str:
    """The webhook's id as a segment of a path. Raises `Failure` for an invalid id."""
    if not _is_uuid(webhook_id):
        raise Failure(f"{webhook_id!r} is not the id of a webhook: see 'podium webhooks list'.", ExitCode.USAGE)
    return webhook_id.lower()


def _segment(text: str, pattern: str, problem: str) -> str:
    if not re.fullmatch(pattern, text):
        raise Failure(f"{text!r} {problem}.", ExitCode.USAGE)
    return quote(text, safe="")


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _reason_of(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time: try again, or run 'podium doctor'."
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be reached: is it running ('podium up'), and is --api-url right?"
    return f"closed the connection ({type(error).__name__}): try again."
