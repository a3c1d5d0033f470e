"""Requests of web pages, which a browser sends with what its user may reach."""

from functools import lru_cache
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler

from api.auth.credentials import Connection, header_values
from api.http.problems import CrossOrigin, Forbidden
from api.resources import provide_resources
from contracts.fields import is_loopback

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header; `none` is a request that no page started.
_OWN_SITES = frozenset({"same-origin", "none"})


async def check_origin(connection: Connection, handler: BaseRouteHandler) -> None:  # noqa: ARG001 - a guard's signature
    """Refuse a change that a web page of another origin requests while no key is required. Raises `CrossOrigin`.

    A guard of every route that does not forward its request. Browsers send such a request without asking first if it
    looks like a form. They name its origin in Origin, in Sec-Fetch-Site, or in both; programs send neither.
    """
    resources = provide_resources(connection.app.state)
    assert connection.scope["type"] == ScopeType.HTTP  # uvicorn runs without WebSockets
    if connection.scope["method"] in _SAFE_METHODS or resources.settings.keys_required:
        return
    [host] = header_values(connection, b"host")
    origins = header_values(connection, b"origin")
    sites = header_values(connection, b"sec-fetch-site")
    if any(_authority(origin) != host.lower() for origin in origins) or not {*map(str.lower, sites)} <= _OWN_SITES:
        raise CrossOrigin


def check_local(connection: Connection) -> None:
    """Raise `Forbidden` unless Host and Origin are this machine.

    A web page elsewhere can reach a loopback address through a name (DNS rebinding), or post to it blindly.
    """
    hosts = header_values(connection, b"host")
    if len(hosts) != 1 or not _is_on_loopback(f"//{hosts[0]}"):
        raise Forbidden
    if not all(_is_on_loopback(origin) for origin in header_values(connection, b"origin")):
        raise Forbidden


def _authority(origin: str) -> str:
    """Host and port of an origin that `check_local` has accepted."""
    return urlsplit(origin).netloc.lower()


@lru_cache(maxsize=1024)
def _is_on_loopback(url: str) -> bool:
    """Whether the host of the URL is this machine."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
