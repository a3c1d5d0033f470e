"""Authentication: checks of the settings at startup, and the guard that checks the key of every request."""

from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from pydantic_core import from_json

from api.http.parameters import agent_name
from api.http.problems import CrossOrigin, Forbidden
from api.resources import Resources, provide_resources
from services.agents.queries import get_agent_by_name
from services.api_keys import AGENT_KEY_PREFIX, agent_api_key, same_secret
from services.errors import AgentNotFound, Unauthorized
from services.settings import Settings
from services.storage.database import in_transaction

_BEARER = "bearer "
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header; `none` is a request that no page started.
_OWN_SITES = frozenset({"same-origin", "none"})

Connection = ASGIConnection[Any, Any, Any, Any]


class StartRefused(Exception):
    """The API refuses to start with these settings."""


def check_bind(settings: Settings) -> None:
    """Check that the API has a secret key, and an API key if other machines can reach it.

    Raises `StartRefused` with a sentence that names the variable to set.
    """
    if not settings.secret_key.get_secret_value():
        raise StartRefused(
            "The API refuses to start: set PODIUM_SECRET_KEY, to the same value on every API process; "
            "agents' own keys are derived from it."
        )
    if not settings.on_loopback and not settings.api_key.get_secret_value():
        raise StartRefused(
            f"The API refuses to start on {settings.host} without a key: set PODIUM_API_KEY, "
            "or PODIUM_HOST=127.0.0.1 to serve this machine only."
        )


async def check_caller(connection: Connection, handler: BaseRouteHandler) -> None:
    """Check the caller's key: the guard of the whole application.

    Raises `Unauthorized`, and `Forbidden` if no API key is set and the request may come from a web page elsewhere.
    """
    resources = provide_resources(connection.app.state)
    expected = resources.settings.api_key.get_secret_value()
    if not expected:
        _check_local(connection)
        return
    if handler.opt.get("public"):
        return
    agent_keys = _header_values(connection, b"x-agent-api-key") if handler.opt.get("agent_key") else []
    if any(same_secret(given, expected) for given in [*_api_keys(connection), *agent_keys]):
        return
    for given in agent_keys:
        if await _is_key_of_named_agent(connection, resources, given):
            return
    raise Unauthorized


async def check_origin(connection: Connection, handler: BaseRouteHandler) -> None:  # noqa: ARG001 - a guard's signature
    """Refuse a change that a web page of another origin requests while no API key is set. Raises `CrossOrigin`.

    A guard of every route that does not forward its request. Browsers send such a request without asking first if it
    looks like a form. They name its origin in Origin, in Sec-Fetch-Site, or in both; programs send neither.
    """
    resources = provide_resources(connection.app.state)
    assert connection.scope["type"] == ScopeType.HTTP  # uvicorn runs without WebSockets
    if connection.scope["method"] in _SAFE_METHODS or resources.settings.api_key.get_secret_value():
        return
    [host] = _header_values(connection, b"host")
    origins = _header_values(connection, b"origin")
    sites = _header_values(connection, b"sec-fetch-site")
    if any(_authority(origin) != host.lower() for origin in origins) or not {*map(str.lower, sites)} <= _OWN_SITES:
        raise CrossOrigin


def _authority(origin: str) -> str:
    """Host and port of an origin that `check_caller` has accepted."""
    return urlsplit(origin).netloc.lower()


def _api_keys(connection: Connection) -> list[str]:
    bearers = [
        value[len(_BEARER) :].strip()
        for value in _header_values(connection, b"authorization")
        if value.lower().startswith(_BEARER)
    ]
    return [*bearers, *_header_values(connection, b"x-api-key")]


async def _is_key_of_named_agent(connection: Connection, resources: Resources, given: str) -> bool:
    """Whether this is the key of the living agent that the body names."""
    if not given.startswith(AGENT_KEY_PREFIX) or not isinstance(connection, Request):
        return False
    try:
        name = agent_name(from_json(await connection.body())["name"])
        view = await in_transaction(resources.reads, lambda session: get_agent_by_name(session, name))
    except (ValueError, TypeError, KeyError, AgentNotFound):
        return False
    secret_key = resources.settings.secret_key.get_secret_value()
    return same_secret(given, agent_api_key(secret_key, view.agent.id))


def _check_local(connection: Connection) -> None:
    """Raise `Forbidden` unless Host and Origin are this machine.

    A web page elsewhere can reach a loopback address through a name (DNS rebinding), or post to it blindly.
    """
    hosts = _header_values(connection, b"host")
    if len(hosts) != 1 or not _is_loopback(f"//{hosts[0]}"):
        raise Forbidden
    if not all(_is_loopback(origin) for origin in _header_values(connection, b"origin")):
        raise Forbidden


@lru_cache(maxsize=1024)
def _is_loopback(url: str) -> bool:
    """Whether the host of the URL is this machine."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _header_values(connection: Connection, name: bytes) -> list[str]:
    """All values of a header, including those that are not UTF-8."""
    return [value.decode("utf-8", "surrogateescape") for key, value in connection.scope["headers"] if key == name]
