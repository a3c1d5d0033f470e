"""Access: an API that others can reach needs a key, and one without a key refuses web pages from elsewhere."""

import re
import socket
from collections.abc import Mapping
from uuid import uuid4

import pytest
from pydantic import SecretStr

from services.egress import LOOPBACK
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod
from tests.support.factories import a_body
from tests.support.waiting import rows

KEY = "a-test's-ключ"
BEARER = {"authorization": f"Bearer {KEY}"}


async def keyed(serve: Serve) -> Api:
    """An API with a key."""
    return await serve(api_key=SecretStr(KEY))


async def test_every_route_but_the_public_ones_needs_a_key(serve: Serve) -> None:
    """401 with WWW-Authenticate, on RPC routes as a JSON-RPC error."""
    api = await keyed(serve)
    await api.post("/agents/register", a_body("bot", deployment_id="v1"), headers=BEARER)
    public = {"/health/live", "/health/ready", "/metrics", "/asyncapi"}
    for template, operations in (await api.get("/openapi.json")).json["paths"].items():
        path = re.sub(r"\{\w+\}", "x", template)
        for method in operations:
            answer = await api.call(method.upper(), path)
            if path.startswith("/.well-known/"):
                answer.problem(404, "agent-not-found" if "{agent_id}" in template else "resource-metadata-missing")
            elif path in public:
                assert answer.status == 200
            elif path.endswith("/rpc"):
                answer.rpc_error(401, "unauthorized")
            else:
                answer.problem(401, "unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
    assert (await api.get("/schema/openapi.json")).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (BEARER, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
        ({"x-api-key": f"{KEY}x"}, 401),
        ({"x-api-key": KEY[:-1]}, 401),
        ({"x-api-key": ""}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic YTpi"}, 401),
        ({"x-agent-api-key": KEY}, 401),
        ({"cookie": f"x-api-key={KEY}"}, 401),
    ],
)
async def test_how_a_key_is_given(serve: Serve, headers: Mapping[str, str], status: int) -> None:
    """The complete key as a bearer token or in x-api-key is accepted, and nothing else."""
    api = await keyed(serve)
    assert (await api.get("/agents", headers=headers)).status == status


async def test_an_agents_own_key_lets_its_pods_register_again(serve: Serve) -> None:
    """The key of an agent registers pods of that agent only, until the agent is deleted; the API's key works too."""
    api = await keyed(serve)
    bot = (await api.post("/agents/register", a_body("bot", deployment_id="v1"), headers=BEARER)).json
    other = (await api.post("/agents/register", a_body("other"), headers=BEARER)).json
    own = {"x-agent-api-key": bot["agent_api_key"]}
    again = await api.post("/agents/register", a_body("bot", deployment_id="v2"), headers=own)
    assert again.status == 200
    assert again.json["agent_api_key"] == bot["agent_api_key"] != other["agent_api_key"]
    with_api_key = await api.post("/agents/register", a_body("new"), headers={"x-agent-api-key": KEY})
    assert with_api_key.status == 200

    refused = [
        await api.post("/agents/register", a_body("other"), headers=own),
        await api.post("/agents/register", a_body("nobody"), headers=own),
        await api.call("POST", "/agents/register", data=b"{", headers=own),
        await api.call("POST", "/agents/register", data=b"[]", headers=own),
        await api.call("POST", "/agents/register", data=b'{"name": {}}', headers=own),
        await api.call("POST", "/agents/register", data=b'{"name": "\\u0000"}', headers=own),
        await api.post("/agents/register-build", {"name": "bot"}, headers=own),
        await api.get(f"/agents/{other['id']}", headers=own),
        await api.post("/agents/register", a_body("bot"), headers={"x-api-key": bot["agent_api_key"]}),
        await api.post("/agents/register", a_body("bot"), headers={"x-agent-api-key": "pak_" + "0" * 64}),
    ]
    for answer in refused:
        answer.problem(401, "unauthorized")
    await api.delete(f"/agents/{bot['id']}", headers=BEARER)
    (await api.post("/agents/register", a_body("bot"), headers=own)).problem(401, "unauthorized")


async def test_the_same_key_on_every_process(serve: Serve) -> None:
    """An agent's key is derived, so every API process returns and accepts the same one."""
    one, two = await keyed(serve), await keyed(serve)
    key = (await one.post("/agents/register", a_body("bot"), headers=BEARER)).json["agent_api_key"]
    again = await two.post("/agents/register", a_body("bot"), headers={"x-agent-api-key": key})
    assert again.json["agent_api_key"] == key


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8080"},
        {"host": "localhost.evil.example"},
        {"host": "10.0.0.7"},
        {"host": "0.0.0.0"},  # noqa: S104 - a name to refuse, not a bind
        {"origin": "https://evil.example"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "null"},
    ],
)
async def test_web_pages_from_elsewhere_cannot_use_an_api_without_a_key(api: Api, headers: Mapping[str, str]) -> None:
    """Neither through a name that resolves to this machine nor with a blind POST; nothing is changed."""
    (await api.post("/agents/register", a_body("bot"), headers=headers)).problem(403, "not-local")
    (await api.get("/agents", headers=headers)).problem(403, "not-local")
    (await api.post("/agents/name/bot/rpc", {}, headers=headers)).rpc_error(403, "not-local")
    assert (await api.get("/agents")).json == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://[::1]"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "Cross-Site"},
    ],
)
async def test_a_web_page_of_this_machine_cannot_change_anything_without_a_key(
    api: Api, headers: Mapping[str, str]
) -> None:
    """G51: a page of another port sends no preflight for these requests; each gets 403, with or without a body."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2")
    path = f"/agents/{agent['id']}"
    before = (await api.get(path)).json, (await api.get(f"{path}/deployments")).json
    refused = [
        await api.post("/agents/register", a_body("other"), headers=headers),
        await api.post("/agents/register-build", {"name": "other"}, headers=headers),
        await api.call("PATCH", path, json={"auto_promote": "always"}, headers=headers),
        await api.post(f"{path}/deployments", {"docker_image": "i"}, headers=headers),
        await api.post(f"{path}/deployments/v2/promote", headers=headers),
        await api.post(f"{path}/rollback", headers=headers),
        await api.post(f"/parked/{uuid4()}/retry", headers=headers),
        await api.delete(f"/parked/{uuid4()}", headers=headers),
        await api.delete(f"{path}/deployments/v2", headers=headers),
        await api.delete("/agents/name/bot", headers=headers),
        await api.delete(path, headers=headers),
    ]
    for answer in refused:
        assert "PODIUM_API_KEY" in answer.problem(403, "cross-origin")["detail"]
    assert before == ((await api.get(path)).json, (await api.get(f"{path}/deployments")).json)
    assert len((await api.get("/agents")).json) == 1


async def test_a_page_of_the_api_s_own_origin_and_programs_can_change(api: Api, serve: Serve) -> None:
    """G51: the API's own origin, a request typed into a browser, and programs, which send neither header."""
    origin = api.url.removeprefix("http://")
    for headers in (
        {"origin": f"http://{origin}", "sec-fetch-site": "same-origin"},
        {"origin": "http://localhost:8080", "host": "LOCALHOST:8080"},
        {"sec-fetch-site": "none"},
        {},
    ):
        assert (await api.post("/agents/register", a_body("bot"), headers=headers)).status == 200, headers
    with_key = await keyed(serve)
    elsewhere = {**BEARER, "origin": "https://console.example", "sec-fetch-site": "cross-site"}
    assert (await with_key.post("/agents/register", a_body("bot"), headers=elsewhere)).status == 200


SIMPLE_TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "text/plain; application/json",
    "",
)


@pytest.mark.parametrize("content_type", SIMPLE_TYPES)
async def test_a_body_that_is_not_sent_as_json(api: Api, content_type: str) -> None:
    """G51: 415 for the content types that a web page can send without a preflight, and nothing changes."""
    agent = await api.register("bot", "v1")
    path, headers = f"/agents/{agent['id']}", {"content-type": content_type}
    before = (await api.get(path)).json, (await api.get(f"{path}/deployments")).json
    refused = [
        await api.call("POST", "/agents/register", data=b'{"name": "other", "acp_url": "http://a"}', headers=headers),
        await api.call("POST", "/agents/register-build", data=b'{"name": "other"}', headers=headers),
        await api.call("PATCH", path, data=b'{"auto_promote": "always"}', headers=headers),
        await api.call("POST", f"{path}/deployments", data=b'{"docker_image": "i"}', headers=headers),
        await api.call("POST", f"{path}/deployments/v1/promote", data=b"{}", headers=headers),
        await api.call("POST", f"{path}/rollback", data=b"{}", headers=headers),
    ]
    for answer in refused:
        assert "application/json" in answer.problem(415, "unsupported-media-type")["detail"]
    assert before == ((await api.get(path)).json, (await api.get(f"{path}/deployments")).json)
    assert len((await api.get("/agents")).json) == 1


JSON_TYPES = ("application/json", "Application/JSON; charset=utf-8", "application/json ; x=y")


@pytest.mark.parametrize("content_type", JSON_TYPES)
async def test_a_body_that_is_sent_as_json(api: Api, content_type: str) -> None:
    """With any parameters; a request without a body needs no content type."""
    body = b'{"name": "bot", "acp_url": "http://a", "registration_metadata": {"deployment_id": "v1"}}'
    answer = await api.call("POST", "/agents/register", data=body, headers={"content-type": content_type})
    assert answer.status == 200
    promote = f"/agents/{answer.json['id']}/deployments/v1/promote"
    assert (await api.post(promote, headers={"content-type": "text/plain"})).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LocalHost:1"},
        {"host": "127.0.0.1:99"},
        {"host": "127.8.8.8"},
        {"host": "[::1]:8080"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://[::1]"},
    ],
)
async def test_this_machine_can_use_an_api_without_a_key(api: Api, headers: Mapping[str, str]) -> None:
    """Under any name of loopback."""
    assert (await api.get("/agents", headers=headers)).status == 200


async def test_with_a_key_any_host_and_origin_is_served(serve: Serve) -> None:
    """Host and Origin are not checked for callers with the key."""
    api = await keyed(serve)
    headers = {**BEARER, "host": "podium.example", "origin": "https://console.example"}
    assert (await api.get("/agents", headers=headers)).status == 200


async def test_the_ledger_names_the_actor(serve: Serve, sessions: Sessions) -> None:
    """With an API key the actor is `api-key`."""
    api = await keyed(serve)
    agent = (await api.post("/agents/register", a_body("bot", deployment_id="v1"), headers=BEARER)).json
    await api.post("/agents/register", a_body("bot", deployment_id="v2"), headers=BEARER)
    await api.post(f"/agents/{agent['id']}/deployments/v2/promote", headers=BEARER)
    ledger = await rows(sessions, "SELECT actor FROM promotions ORDER BY generation DESC LIMIT 1")
    assert ledger[0].actor == "api-key"


async def test_served_beyond_this_machine_with_a_key(serve: Serve, pod: Pod) -> None:
    """An API that listens on all addresses works with a key; the key never reaches an agent."""
    api = await serve(host="0.0.0.0", api_key=SecretStr(KEY), dial_networks=LOOPBACK)  # noqa: S104 - its subject
    local = Api(api.url.replace("0.0.0.0", socket.gethostbyname("localhost")), api.session)  # noqa: S104 - as above
    registered = await local.post("/agents/register", a_body("bot", acp_url=pod.url), headers=BEARER)
    assert registered.status == 200
    for headers in (BEARER, {"x-api-key": KEY}):
        assert (await local.post("/agents/name/bot/rpc", {"id": 1}, headers=headers)).status == 200
    for seen in pod.seen:
        assert not seen.header("authorization")
        assert not seen.header("x-api-key")
