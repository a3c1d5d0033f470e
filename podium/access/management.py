"""Users and permissions through RabbitMQ's management API: https://www.rabbitmq.com/docs/management#http-api."""

import secrets
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from contracts.topology import REGISTRATIONS_EXCHANGE
from podium.access.broker import NOTHING, User

TIMEOUT_SECONDS = 10
PASSWORD_BYTES = 24


class ManagementFailed(Exception):
    """The management API refused a request, or cannot be reached; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A user that exists. `password` is set if the user is new; nothing else stores it."""

    user: User
    password: str | None


class Management:
    """The management API of one broker. Its methods raise `ManagementFailed`."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._session = session

    async def apply(self, users: Sequence[User], vhost: str) -> AsyncIterator[Applied]:
        """Make the users that do not exist, with random passwords, and set the permissions of all. May be repeated.

        A user that exists keeps its password. Each user is yielded as soon as it exists, before it has permissions, so
        that its password is known even if the next request fails.
        """
        for user in users:
            yield Applied(user, await self._make(user))
            await self._permit(user, vhost)

    async def _make(self, user: User) -> str | None:
        """The password of a new user; None if it exists. Raises `ManagementFailed` if that one has a tag."""
        path = f"users/{quote(user.name, safe='')}"
        found = await self._call("GET", path, missing_ok=True)
        if found is not None:
            if found["tags"]:
                raise ManagementFailed(
                    f"The user {user.name} exists with the tags {found['tags']}, which permit more than this policy: "
                    f"remove them with 'rabbitmqctl set_user_tags {user.name}'."
                )
            return None
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        await self._call("PUT", path, {"password": password, "tags": ""})
        return password

    async def _permit(self, user: User, vhost: str) -> None:
        place, rights = f"{quote(vhost, safe='')}/{quote(user.name, safe='')}", user.permissions
        # Before the permission, which alone would allow every routing key.
        if user.keys is not None:
            keys = {"exchange": REGISTRATIONS_EXCHANGE, "write": user.keys, "read": NOTHING}
            await self._call("PUT", f"topic-permissions/{place}", keys)
        await self._call(
            "PUT",
            f"permissions/{place}",
            {"configure": rights.configure, "write": rights.write, "read": rights.read},
        )

    async def _call(self, method: str, path: str, body: Any = None, *, missing_ok: bool = False) -> Any:  # noqa: ANN401 - JSON
        """The JSON answer; None if there is none, or if it is 404 and that is allowed."""
        try:
            async with self._session.request(method, f"{self._url}/api/{path}", json=body) as response:
                if response.status == 404 and missing_ok:  # noqa: PLR2004 - HTTP Not Found
                    return None
                if not response.ok:
                    raise ManagementFailed(
                        f"The management API answers {response.status} to {method} {path}: "
                        f"{(await response.text())[:200]}"
                    )
                return await response.json() if method == "GET" else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ManagementFailed(f"The management API at {self._url} cannot be used: {error}") from error


@asynccontextmanager
async def management(url: str, authorization: str, ca_file: str = "") -> AsyncIterator[Management]:
    """The management API at this URL, with this credential. Without a file, the system says whom to trust."""
    trusted = ssl.create_default_context(cafile=ca_file or None)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(ssl=trusted)
    async with aiohttp.ClientSession(
        headers={"authorization": authorization}, connector=connector, timeout=timeout
    ) as session:
        yield Management(url, session)
