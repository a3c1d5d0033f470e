"""If-Match on every change of an agent or a deployment, and the ETags that it accepts."""

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.integration.api.client import Answer, Api

STALE = {"If-Match": '"77"'}
# A stream that starts would not end.
LIMIT = aiohttp.ClientTimeout(total=5)
# Not HEAD, whose answers have no body.
METHODS = ("get", "post", "patch", "delete")


async def two_versions(api: Api) -> str:
    """The path of an agent at generation 1 with `v1` in production and the preview `v2`."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2")
    return f"/agents/{agent['id']}"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The path, method and description of each documented operation."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method.upper(), item[method]


async def changes(api: Api, agent: str, headers: dict[str, str]) -> list[Answer]:
    """The answers to each conditional change that is allowed in this state, in an order in which all can succeed."""
    return [
        await api.call("PATCH", agent, json={"description": "new"}, headers=headers),
        await api.post(f"{agent}/deployments", {"id": "v3", "docker_image": "i"}, headers=headers),
        await api.delete(f"{agent}/deployments/v2", headers=headers),
        await api.delete("/agents/name/bot", headers=headers),
        await api.delete(agent, headers=headers),
    ]


async def test_a_condition_that_does_not_hold(api: Api) -> None:
    """G49: 412 for every change of an agent or a deployment, and nothing changes."""
    agent = await two_versions(api)
    before = (await api.get(agent)).json, (await api.get(f"{agent}/deployments")).json
    for answer in await changes(api, agent, STALE):
        answer.problem(412, "generation-mismatch")
    assert before == ((await api.get(agent)).json, (await api.get(f"{agent}/deployments")).json)


@pytest.mark.parametrize("condition", ['"1"', "*"])
async def test_a_condition_that_holds(api: Api, condition: str) -> None:
    """G49: each change is applied."""
    agent = await two_versions(api)
    answers = await changes(api, agent, {"If-Match": condition})
    assert [answer.status for answer in answers] == [200] * 5, [answer.body for answer in answers]
    assert (await api.get(agent)).json["status"] == "Deleted"


async def test_the_order_of_the_checks(api: Api) -> None:
    """G49: 404, 410, unchanged, 412, 409, as for a promote."""
    agent = await two_versions(api)
    missing = "/agents/00000000-0000-4000-8000-000000000000"
    new = {"id": "v3", "docker_image": "i"}
    (await api.call("PATCH", missing, json={}, headers=STALE)).problem(404, "agent-not-found")
    (await api.delete(missing, headers=STALE)).problem(404, "agent-not-found")
    (await api.delete(f"{agent}/deployments/nothing", headers=STALE)).problem(404, "deployment-not-found")

    (await api.delete(f"{agent}/deployments/v1", headers=STALE)).problem(412, "generation-mismatch")
    current = {"If-Match": '"1"'}
    (await api.delete(f"{agent}/deployments/v1", headers=current)).problem(409, "production-cannot-be-deleted")
    await api.post(f"{agent}/deployments", new)
    other_image = {**new, "docker_image": "other"}
    (await api.post(f"{agent}/deployments", other_image, headers=STALE)).problem(412, "generation-mismatch")
    (await api.post(f"{agent}/deployments", other_image, headers=current)).problem(409, "image-conflict")

    await api.delete(f"{agent}/deployments/v2")
    unchanged = [
        await api.call("PATCH", agent, json={"auto_promote": "first"}, headers=STALE),
        await api.post(f"{agent}/deployments", new, headers=STALE),
        await api.delete(f"{agent}/deployments/v2", headers=STALE),
    ]
    assert [answer.status for answer in unchanged] == [200] * 3, [answer.body for answer in unchanged]

    deleted = {**new, "id": "v2"}
    (await api.post(f"{agent}/deployments", deleted, headers=STALE)).problem(410, "deployment-deleted")
    assert (await api.delete(agent)).status == 200
    (await api.call("PATCH", agent, json={}, headers=STALE)).problem(410, "agent-deleted")
    (await api.post(f"{agent}/deployments", new, headers=STALE)).problem(410, "agent-deleted")
    assert (await api.delete(agent, headers=STALE)).status == 200


async def test_the_etag_of_a_read_is_a_condition(api: Api) -> None:
    """G49: each answer about an agent or a deployment has an ETag that If-Match accepts."""
    agent = await two_versions(api)
    reads = [agent, "/agents/name/bot", f"{agent}/deployments/v2", "/deployments/v2"]
    assert [(await api.get(path)).headers.get("etag") for path in reads] == ['"1"'] * 4
    promoted = await api.post(
        f"{agent}/deployments/v2/promote", headers={"If-Match": (await api.get(reads[2])).headers["etag"]}
    )
    assert (promoted.status, promoted.headers["etag"]) == (200, '"2"')
    assert [(await api.get(path)).headers.get("etag") for path in reads] == ['"2"'] * 4
    changed = await api.call("PATCH", agent, json={"description": "new"}, headers={"If-Match": '"2"'})
    assert (changed.status, changed.headers["etag"]) == (200, '"2"')


async def test_a_route_that_cannot_honour_a_condition(api: Api, subtests: pytest.Subtests) -> None:
    """G49: 400 on every route whose description does not contain If-Match, except RPC."""
    refused = 0
    for path, method, operation in operations((await api.get("/openapi.json")).json):
        names = {parameter["name"] for parameter in operation.get("parameters", [])}
        if "If-Match" in names or path.endswith("/rpc"):
            continue
        with subtests.test(path=path, method=method):
            answer = await api.call(
                method, path.replace("{", "").replace("}", ""), headers={"If-Match": '"1"'}, timeout=LIMIT
            )
            answer.problem(400, "invalid-request", "If-Match")
            refused += 1
    assert refused > 15
