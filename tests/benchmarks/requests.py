"""The requests of each kind of work over HTTP: a list for each connection, which repeats its own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.support.factories import a_body

AGENTS = 64
VERSIONS = 4
MOST_CONNECTIONS = 128
# Connections that change the same agent at the same time promote different versions of it.
VERSIONS_OF_ONE = MOST_CONNECTIONS + 1
ONE = "one-agent"
TURNS = 8
CALL = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"content": "Hello"}}


@dataclass(frozen=True, slots=True)
class Fleet:
    """The agents of a program under measurement: their ids by name, and where the program and the pods listen."""

    ids: dict[str, str]
    host: str
    pods: str


def request(method: str, path: str, host: str, body: object = None, headers: str = "") -> str:
    """The text of a request; each of the further headers ends with CR LF."""
    content = "" if body is None else json.dumps(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}\r\n{content}"


def announcement(name: str, version: int, pods: str, turn: str = "0") -> dict[str, object]:
    """What a pod of this version posts; its address differs by turn."""
    return a_body(
        name,
        deployment_id=f"{name}-v{version}",
        docker_image=f"registry.internal/{name}:{version}",
        acp_url=f"{pods}/{turn}",
        description="Answers questions of customers.",
    )


def all_announcements(pods: str) -> list[dict[str, object]]:
    """The first announcement of each version of each agent."""
    versions = {**dict.fromkeys(_names(), VERSIONS), ONE: VERSIONS_OF_ONE}
    return [announcement(name, version, pods) for name, count in versions.items() for version in range(count)]


def _names() -> list[str]:
    return [f"agent-{number}" for number in range(AGENTS)]


def _of(connection: int) -> tuple[str, list[str]]:
    """The agent of a connection, and two of its versions, which no other connection uses."""
    name, first = f"agent-{connection % AGENTS}", connection // AGENTS % 2 * 2
    return name, [f"{name}-v{first}", f"{name}-v{first + 1}"]


def _registrations(fleet: Fleet) -> list[list[str]]:
    return [
        [
            request(
                "POST",
                "/agents/register",
                fleet.host,
                announcement(_of(connection)[0], turn % VERSIONS, fleet.pods, f"{connection}-{turn}"),
            )
            for turn in range(TURNS)
        ]
        for connection in range(MOST_CONNECTIONS)
    ]


def _promotes(fleet: Fleet) -> list[list[str]]:
    return [
        [
            request("POST", f"/agents/{fleet.ids[name]}/deployments/{version}/promote", fleet.host, {})
            for version in versions
        ]
        for name, versions in map(_of, range(MOST_CONNECTIONS))
    ]


def _promotes_of_one(fleet: Fleet) -> list[list[str]]:
    path = f"/agents/{fleet.ids[ONE]}/deployments/{ONE}"
    requests = [request("POST", f"{path}-v{version}/promote", fleet.host, {}) for version in range(VERSIONS_OF_ONE)]
    return [requests[connection : connection + 2] for connection in range(MOST_CONNECTIONS)]


def _rollbacks(fleet: Fleet) -> list[list[str]]:
    return [
        [request("POST", f"/agents/{fleet.ids[name]}/rollback", fleet.host, {"to": version}) for version in versions]
        for name, versions in map(_of, range(MOST_CONNECTIONS))
    ]


def _reads(fleet: Fleet) -> list[list[str]]:
    return [[request("GET", f"/agents/{fleet.ids[name]}", fleet.host)] for name in _names()]


def _lists(fleet: Fleet) -> list[list[str]]:
    return [[request("GET", "/agents?limit=50", fleet.host)]]


def _forwards(fleet: Fleet) -> list[list[str]]:
    return [[request("POST", f"/agents/name/{name}/rpc", fleet.host, CALL)] for name in _names()]


REQUESTS: dict[str, Callable[[Fleet], Sequence[Sequence[str]]]] = {
    "registrations": _registrations,
    "promotes": _promotes,
    "promotes_of_one": _promotes_of_one,
    "rollbacks": _rollbacks,
    "reads": _reads,
    "lists": _lists,
    "forwards": _forwards,
}
