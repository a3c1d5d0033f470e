"""Metrics of agents and of the process, as Prometheus scrapes them from a real API."""

from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, refused_address
from tests.support.factories import a_body
from tests.support.waiting import eventually

Samples = dict[tuple[str, ...], float]


async def samples(api: Api) -> Samples:
    """Each sample by its name and the values of its labels."""
    body = (await api.get("/metrics")).body.decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


async def counted(api: Api, *key: str, least: float = 1) -> Samples:
    """The samples, once this one has at least this value: calls are counted after their answer."""
    found: Samples = {}

    async def enough() -> bool:
        found.update(await samples(api))
        return found.get(key, 0) >= least

    await eventually(enough, f"{key} is counted")
    return found


async def test_calls_and_changes_are_counted_by_agent(api: Api, pod: Pod) -> None:
    """By the agent's name, whichever route was used; a call that finds no agent is nobody's."""
    agent = await api.register("bot", "v1", acp_url=pod.url)
    await api.register("bot", "v2", acp_url=pod.url)
    await api.promote(agent, "v2")
    await api.post("/agents/name/bot/rpc", {}, headers={"mcp-method": "tools/call", "a2a-version": "7"})
    await api.post(f"/agents/{agent['id']}/rpc", {}, headers={"mcp-method": "x" * 50})
    await api.post("/agents/name/nobody/rpc", {})
    await api.register("idle")
    found = await counted(api, "podium_agent_calls_total", "bot", least=2)
    assert found["podium_agent_first_byte_seconds_count", "bot"] == 2
    assert found["podium_agent_calls_under_way", "bot"] == 0
    assert found["podium_agent_registrations_total", "bot", "Registered"] == 2
    assert found["podium_agent_promotions_total", "bot", "first"] == 1
    assert found["podium_agent_promotions_total", "bot", "manual"] == 1
    assert found["podium_rpc_mcp_calls_total", "tools/call"] == found["podium_rpc_mcp_calls_total", "other"] == 1
    assert found["podium_rpc_a2a_calls_total", "other"] == 1
    assert found["podium_api_ready",] == 1
    assert not any("nobody" in key for key in found)


async def test_failures_are_counted_by_agent_and_reason(api: Api) -> None:
    """Also those of an agent that nothing serves."""
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        await api.post("/agents/register-build", {"name": "built", "docker_image": "i"})
        await api.post("/agents/name/bot/rpc", {})
        await api.post("/agents/name/built/rpc", {})
        found = await counted(api, "podium_agent_failures_total", "built", "nothing-serves")
    assert found["podium_agent_failures_total", "bot", "agent-unreachable"] == 1


async def test_a_scrape_forgets_deleted_agents(api: Api, pod: Pod) -> None:
    """G99: whichever process deleted them."""
    agent = await api.register("bot", "v1", acp_url=pod.url)
    await api.register("other", "w1", acp_url=pod.url)
    await api.delete(f"/agents/{agent['id']}")
    found = await samples(api)
    assert {key[1] for key in found if key[0] == "podium_agent_registrations_total"} == {"other"}


async def test_agents_beyond_the_setting_share_a_label(serve: Serve, pod: Pod) -> None:
    """G99: and without any, there is no label."""
    few, none = await serve(metrics_agents=1), await serve(metrics_agents=0)
    for api in (few, none):
        await api.register("bot", "v1", acp_url=pod.url)
        await api.register("other", "w1", acp_url=pod.url)
        for name in ("bot", "other", "other"):
            await api.post(f"/agents/name/{name}/rpc", {})
    found = await counted(few, "podium_agent_calls_total", "_other", least=2)
    assert found["podium_agent_calls_total", "bot"] == 1
    assert not any(name.startswith("podium_agent_") for name, *_ in await samples(none))


async def test_only_who_may_read_all_agents_gets_their_metrics(serve: Serve) -> None:
    """G99: the names of agents are told to nobody else, while everybody gets the other metrics."""
    api = await serve(api_key=SecretStr("right"))
    right = {"x-api-key": "right"}
    await api.post("/agents/register", a_body("hidden-bot", deployment_id="v1"), headers=right)
    key = {"name": "k", "owner": "amy", "scopes": ["read"]}
    bound = await api.post("/keys", key | {"agents": ["other*"]}, headers=right)
    reader = await api.post("/keys", key | {"name": "prometheus"}, headers=right)
    shown = []
    for headers in (
        {},
        {"authorization": "Bearer "},
        {"x-api-key": "wrong"},
        {"x-api-key": bound.json["secret"]},
        {"x-api-key": reader.json["secret"]},
        right,
    ):
        answer = await api.get("/metrics", headers=headers)
        assert answer.status == 200
        assert "podium_http_requests_total" in answer.body.decode()
        shown.append("hidden-bot" in answer.body.decode())
    assert shown == [False, False, False, False, True, True]


async def test_credentials_that_are_refused_are_counted(serve: Serve) -> None:
    """Not requests without any."""
    api = await serve(api_key=SecretStr("right"), auth_failures_per_minute=2)
    for _ in range(3):
        await api.get("/agents", headers={"x-api-key": "wrong"})
    await api.get("/agents")
    found = await samples(api)
    assert found["podium_auth_failures_total", "refused"] == 2
    assert found["podium_auth_failures_total", "limited"] == 1
