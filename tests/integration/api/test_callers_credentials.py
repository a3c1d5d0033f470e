"""Agents that authenticate their callers themselves, behind the gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr
from pydantic_core import to_json
from sqlalchemy import text

from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, running_pod
from tests.support.factories import a_body

KEY = {"x-api-key": "the-api-key"}
METADATA = "/.well-known/oauth-protected-resource"
FAIL = text("UPDATE deployments SET status = 'Failed', status_reason = 'why' WHERE id = 'f1'")
TOKEN = "Bearer of-the-agents-users"
THEIRS: dict[str, Any] = {
    "resource": "http://agent.internal/api",
    "authorization_servers": ["https://login.example"],
    "scopes_supported": ["tools"],
    "signed_metadata": "e30.e30.x",
}


@asynccontextmanager
async def strict_pod(metadata: dict[str, bytes], challenge: str = "") -> AsyncIterator[Pod]:
    """A pod that wants a token of its own, and publishes these documents by path."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path in metadata:
            return web.Response(body=metadata[request.path], content_type="application/json")
        if request.path.startswith("/.well-known/"):
            return web.Response(status=404)
        if request.headers.get("authorization") == TOKEN:
            return web.json_response({"result": "ok"})
        return web.Response(status=401, headers={"www-authenticate": challenge} if challenge else {})

    async with running_pod(answer) as pod:
        yield pod


async def an_agent(serve: Serve, pod: Pod, **changes: Any) -> tuple[Api, str]:
    """An API with a key, and the path of the agent `bot` at this pod, whose callers' credentials pass."""
    api = await serve(api_key=SecretStr(KEY["x-api-key"]), **changes)
    agent = (await api.post("/agents/register", a_body("bot", deployment_id="v1", acp_url=pod.url), headers=KEY)).json
    path = f"/agents/{agent['id']}"
    changed = await api.call("PATCH", path, json={"forward_authorization": "pass"}, headers=KEY)
    assert changed.json["forward_authorization"] == "pass"
    return api, path


async def test_a_callers_token_reaches_the_agent_only_by_policy(serve: Serve) -> None:
    """G77: `pass` forwards the header unchanged on every RPC route; `strip`, the default, removes it."""
    async with strict_pod({}) as pod:
        api, path = await an_agent(serve, pod)
        headers = {**KEY, "authorization": TOKEN}
        for route in (f"{path}/rpc", "/agents/name/bot/rpc", f"{path}/deployments/v1/rpc"):
            assert (await api.post(route, {"id": 1}, headers=headers)).json == {"result": "ok"}
            assert pod.seen[-1].header("authorization") == [TOKEN]
            assert not pod.seen[-1].header("x-api-key")
        basic = {**KEY, "authorization": "Basic YTpi"}
        await api.post(f"{path}/rpc", {"id": 1}, headers=basic)
        assert pod.seen[-1].header("authorization") == ["Basic YTpi"]
        await api.call("PATCH", path, json={"forward_authorization": "strip"}, headers=KEY)
        assert (await api.post(f"{path}/rpc", {"id": 1}, headers=headers)).status == 401
        assert not pod.seen[-1].header("authorization")


async def test_podiums_own_credentials_never_reach_an_agent(serve: Serve) -> None:
    """G77: neither the API key, nor named keys, valid or not, nor agents' keys, nor one of two headers."""
    async with strict_pod({}) as pod:
        api, path = await an_agent(serve, pod)
        made = (await api.post("/keys", {"name": "ci", "scopes": ["invoke"]}, headers=KEY)).json["secret"]
        for credential in (KEY["x-api-key"], made, "podium_revoked", "pak_" + "0" * 64):
            headers = {**KEY, "authorization": f"bearer  {credential}"}
            assert (await api.post(f"{path}/rpc", {"id": 1}, headers=headers)).status == 401
            assert not pod.seen[-1].header("authorization")
        several = [*KEY.items(), ("authorization", TOKEN), ("authorization", f"Bearer {made}")]
        await api.call("POST", f"{path}/rpc", json={"id": 1}, headers=several)
        assert not pod.seen[-1].header("authorization")


async def test_a_challenge_names_the_gateway(serve: Serve) -> None:
    """G77: `resource_metadata` becomes the route of the gateway; other challenges stay with the agent."""
    challenge = 'Bearer error="invalid_token", resource_metadata="http://agent.internal/.well-known/x", scope="tools"'
    async with strict_pod({}, challenge) as pod:
        api, path = await an_agent(serve, pod)
        refused = await api.post(f"{path}/rpc", {"id": 1}, headers=KEY)
        own = f'Bearer error="invalid_token", resource_metadata="{api.url}{METADATA}{path}/rpc", scope="tools"'
        assert refused.headers.getall("www-authenticate") == [own]
        await api.call("PATCH", path, json={"forward_authorization": "strip"}, headers=KEY)
        assert "www-authenticate" not in (await api.post(f"{path}/rpc", {"id": 1}, headers=KEY)).headers
    async with strict_pod({}, 'Basic realm="give me your password"') as pod:
        api, path = await an_agent(serve, pod)
        assert "www-authenticate" not in (await api.post(f"{path}/rpc", {"id": 1}, headers=KEY)).headers


@pytest.mark.parametrize("place", [f"{METADATA}/api", METADATA])
async def test_the_metadata_of_an_agent_has_the_gateways_address(serve: Serve, place: str) -> None:
    """G77: without a key, at the place that the specification says, for each RPC route."""
    async with strict_pod({place: to_json(THEIRS)}) as pod:
        api, path = await an_agent(serve, pod)
        for route in (f"{path}/rpc", "/agents/name/bot/rpc", f"{path}/deployments/v1/rpc"):
            answer = await api.get(f"{METADATA}{route}")
            expected = {**THEIRS, "resource": f"{api.url}{route}"}
            del expected["signed_metadata"]
            assert answer.json == expected
            assert answer.headers["cache-control"] == "no-cache"
        public = await serve(api_key=SecretStr("k"), public_url="https://podium.example/x/")
        answer = await public.get(f"{METADATA}/agents/name/bot/rpc")
        assert answer.json["resource"] == "https://podium.example/x/agents/name/bot/rpc"


async def test_nothing_is_told_of_other_agents_without_a_key(serve: Serve, sessions: Sessions) -> None:
    """G77: the same 404 for agents that are unknown, deleted, idle or Failed, without metadata, or with `strip`."""
    async with strict_pod({f"{METADATA}/api": to_json(THEIRS)}) as pod, strict_pod({}) as silent:
        api, path = await an_agent(serve, pod)
        other = (await api.post("/agents/register", a_body("other", acp_url=pod.url), headers=KEY)).json
        quiet = (await api.post("/agents/register", a_body("quiet", acp_url=silent.url), headers=KEY)).json
        await api.call("PATCH", f"/agents/{quiet['id']}", json={"forward_authorization": "pass"}, headers=KEY)
        await api.delete(path, headers=KEY)
        idle = (await api.post("/agents/register-build", {"name": "idle"}, headers=KEY)).json
        failed = (await api.post("/agents/register", a_body("failed", deployment_id="f1"), headers=KEY)).json
        await in_transaction(sessions, lambda session: session.execute(FAIL))
        told = {
            (await api.get(f"{METADATA}{route}")).body
            for route in (
                f"/agents/{other['id']}/rpc",
                "/agents/name/other/rpc",
                "/agents/name/nobody/rpc",
                f"{path}/rpc",
                f"{path}/deployments/v1/rpc",
                "/agents/name/quiet/rpc",
                "/agents/name/idle/rpc",
                f"/agents/{idle['id']}/rpc",
                "/agents/name/failed/rpc",
                f"/agents/{failed['id']}/deployments/f1/rpc",
            )
        }
        assert len(told) == 1
        (await api.get(f"{METADATA}/agents/name/other/rpc")).problem(404, "resource-metadata-missing")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a":"' + b"x" * 70_000 + b'"}'])
async def test_metadata_that_nobody_can_use(serve: Serve, content: bytes) -> None:
    """G77: 502, and nothing of it is passed on."""
    async with strict_pod({f"{METADATA}/api": content}) as pod:
        api, _ = await an_agent(serve, pod)
        (await api.get(f"{METADATA}/agents/name/bot/rpc")).problem(502, "resource-metadata-invalid")
