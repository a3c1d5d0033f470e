"""The `Location` of an agent's answer: callers get the gateway's route, and never an agent's own address."""

from collections.abc import Iterable
from urllib.parse import SplitResult, urljoin, urlsplit

from api.http.jsonrpc import ForwardingFailure

LOCATION = b"location"
_REDIRECTS = range(300, 400)
_PORTS = {"http": 80, "https": 443}


class AgentRedirects(ForwardingFailure):
    """The agent redirects the call to another address: register the pod with the address and path that answer calls."""

    reason = "agent-redirects"
    sent = True


def returned_location(
    status: int, headers: Iterable[tuple[bytes, bytes]], *, rpc_url: str, route_url: str
) -> bytes | None:
    """The value for the caller: `route_url` in place of the agent's `rpc_url`, with the query and the fragment kept.

    None without a usable value. Raises `AgentRedirects` for a redirect to any other address, which the gateway could
    not forward.
    """
    values = [value for name, value in headers if name.lower() == LOCATION]
    if not values:
        return None
    found = _own_part(values[0].decode("latin-1"), rpc_url) if len(values) == 1 else None
    if found is not None:
        return f"{route_url}{found}".encode("latin-1")
    if status in _REDIRECTS:
        raise AgentRedirects
    return None


def _own_part(location: str, rpc_url: str) -> str | None:
    """Query and fragment of a location at `rpc_url`; None for any other one."""
    try:
        target, own = urlsplit(urljoin(rpc_url, location)), urlsplit(rpc_url)
        if _endpoint(target) != _endpoint(own):
            return None
    except ValueError:
        return None
    query = f"?{target.query}" if target.query else ""
    return f"{query}#{target.fragment}" if target.fragment else query


def _endpoint(url: SplitResult) -> tuple[str, str | None, str | None, int | None, str]:
    return url.scheme, url.username, url.hostname, url.port or _PORTS.get(url.scheme), url.path or "/"
