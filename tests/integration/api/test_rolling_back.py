"""Rollback over HTTP: a target must answer a probe, unless the caller forces it."""

import asyncio
from contextlib import AsyncExitStack

from aiohttp import web

from tests.integration.api.client import Api
from tests.integration.api.pods import Pod, refused_address, running_pod


async def served_in_turn(api: Api, **urls: str) -> str:
    """Register and promote versions at these addresses in turn; returns the agent's rollback path."""
    for version, url in urls.items():
        agent = await api.register("bot", version, acp_url=url)
        await api.promote(agent, version)
    return f"/agents/{agent['id']}/rollback"


async def test_rolling_back(api: Api, pod: Pod) -> None:
    """Each rollback goes one step back, down to the legacy address; a target can be given. It pauses promotion."""
    await api.register("bot", acp_url=pod.url)
    path = await served_in_turn(api, v1=pod.url, v2=pod.url)
    first = await api.post(path, {"reason": "it is slow"})
    assert first.status == 200
    assert first.headers["x-podium-generation"] == "4"
    assert first.json["production_deployment_id"] == "v1"
    assert first.json["auto_promote_paused"]
    second = await api.post(path)
    assert (second.json["production_deployment_id"], second.json["acp_url"]) == (None, pod.url)
    named = await api.post(path, {"to": "v2"}, headers={"If-Match": '"5"'})
    assert named.json["production_deployment_id"] == "v2"
    assert (await api.post(path, {"to": "legacy"})).json["production_deployment_id"] is None
    (await api.post(path, {"to": "nowhere"})).problem(404, "deployment-not-found")
    assert {(seen.method, seen.target) for seen in pod.seen} == {("GET", "/healthz")}


async def test_a_target_that_does_not_answer_is_refused_and_the_nearest_that_does_is_named(api: Api, pod: Pod) -> None:
    """409, and nothing changes; `force` skips the probe, and a target that already serves needs none."""
    async with refused_address() as nowhere:
        path = await served_in_turn(api, v1=pod.url, v2=pod.url, v3=nowhere, v4=nowhere, v5=pod.url)
        for body in ({}, {"to": "v4"}):
            refused = (await api.post(path, body)).problem(409, "rollback-target-does-not-answer")
            assert refused["detail"] == (
                "v4 does not answer: cannot connect (Connection refused). The nearest that does is v2: "
                "name a deployment, or send force."
            )
        assert (await api.get("/agents/name/bot")).json["generation"] == 5
        assert (await api.get("/agents/name/bot")).json["auto_promote_paused"] is False
        forced = await api.post(path, {"force": True})
        assert (forced.status, forced.json["production_deployment_id"]) == (200, "v4")
        assert (await api.post(path, {"to": "v4"})).status == 200
        (await api.post(path, {"force": "yes"})).problem(400, "invalid-request", "force")


async def test_where_nothing_earlier_answers_the_refusal_says_so(api: Api) -> None:
    """The error names no target that does not answer."""
    async with refused_address() as nowhere:
        path = await served_in_turn(api, v1=nowhere, v2=nowhere, v3=nowhere)
        refused = (await api.post(path)).problem(409, "rollback-target-does-not-answer")
        assert "No earlier one does" in refused["detail"]


async def test_the_target_is_the_one_that_was_probed(api: Api) -> None:
    """No lock is held during the probe; after a promote meanwhile, the new target is probed too."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.Response()

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_pod(slow))
        second = await stack.enter_async_context(running_pod())
        path = await served_in_turn(api, v1=first.url, v2=second.url)
        agent = await api.register("bot", "v3", acp_url=second.url)
        rolling = asyncio.create_task(api.post(path))
        await asked.wait()
        await api.promote(agent, "v3")
        go_on.set()
        assert (await rolling).json["production_deployment_id"] == "v2"
        assert len(second.seen) == 1
