"""Calls to a deployment with several instances: where each goes, and what happens when some cannot be reached."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from time import perf_counter

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, raw_pod, refused_address, running_pod
from tests.integration.api.test_cards import CARD, a_card, serving
from tests.integration.api.test_rpc_records import lines
from tests.support.instances import Instances
from tests.support.unreachable import full_backlog

RPC = "/agents/name/bot/rpc"
NAMED = "x-podium-instance-id"
LONG = timedelta(seconds=60)
CONNECT = timedelta(seconds=0.6)


@pytest_asyncio.fixture
async def pods() -> AsyncIterator[dict[str, Pod]]:
    """Three pods, by the ids of their instances."""
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(running_pod()) for name in ("a", "b", "c")}


def urls(pods: dict[str, Pod]) -> dict[str, str]:
    """Their addresses."""
    return {name: pod.url for name, pod in pods.items()}


async def deployed(api: Api, instances: Instances, urls: dict[str, str]) -> None:
    """Agent `bot`, whose deployment v1 is in production with these instances."""
    await api.register("bot", "v1", acp_url=next(iter(urls.values())))
    await instances.add("v1", urls)


async def answers(api: Api, count: int) -> Counter[tuple[int, str | None]]:
    """How many calls got each status from each instance, one call after another."""
    found: Counter[tuple[int, str | None]] = Counter()
    for number in range(count):
        answer = await api.post(RPC, {"id": number})
        found[answer.status, answer.headers.get(NAMED)] += 1
    return found


async def test_each_answer_names_its_instance(api: Api, pods: dict[str, Pod], instances: Instances) -> None:
    """All Ready instances get calls, each on its own path; a Failed one gets none from the next call on."""
    await deployed(api, instances, urls(pods))
    found = await answers(api, 60)
    assert {key for key in found if key[0] == 200} == {(200, name) for name in pods}
    for name, pod in pods.items():
        assert len(pod.seen) == found[200, name]
    await instances.fail("v1", "b")
    assert set(await answers(api, 30)) == {(200, "a"), (200, "c")}


async def test_announced_instances_get_calls(api: Api, pods: dict[str, Pod]) -> None:
    """From the first call after the reply to an announcement on."""
    for number, (name, pod) in enumerate(pods.items(), 1):
        await api.register("bot", "v1", acp_url=pod.url, registration_metadata={"instance_id": name})
        assert set(await answers(api, 30)) == {(200, known) for known in list(pods)[:number]}


async def test_a_pod_without_a_name_is_an_instance_too(api: Api, pods: dict[str, Pod], instances: Instances) -> None:
    """Its answers have no instance header, and an agent cannot set one."""
    await deployed(api, instances, {"": pods["a"].url, "b": pods["b"].url})
    found = await answers(api, 30)
    assert set(found) == {(200, None), (200, "b")}
    named = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Podium-Instance-Id: mine\r\n\r\nok"
    async with raw_pod(named) as liar:
        await api.register("liar", "l1", acp_url=liar.url)
        assert NAMED not in (await api.post("/agents/name/liar/rpc", {})).headers


async def test_without_a_ready_instance_the_last_address_is_left(
    api: Api, pods: dict[str, Pod], instances: Instances
) -> None:
    """The deployment is still Ready when its last instance is not, for a moment or while verdicts are suspended."""
    await deployed(api, instances, {"a": pods["a"].url})
    await instances.fail("v1", "a")
    assert await answers(api, 2) == {(200, None): 2}


async def test_a_refused_connection_moves_on(serve: Serve, pods: dict[str, Pod], instances: Instances) -> None:
    """G64: no call fails, and the first refusal keeps all calls of the next seconds away from the dead instance."""
    api = await serve(breaker_pause=LONG)
    async with refused_address() as nowhere:
        await deployed(api, instances, {**urls(pods), "dead": nowhere})
        with capture_logs() as logged:
            assert {status for status, _ in await answers(api, 60)} == {200}
            calls = await lines(logged, 60)
    moved = [line for line in calls if "failovers" in line]
    assert [line["failovers"] for line in moved] == [1]
    assert all(line["instance_id"] in pods for line in calls)
    opened = [line for line in logged if line["action"] == "breaker.opened"]
    assert [(line["deployment_id"], line["instance_id"]) for line in opened] == [("v1", "dead")]
    metrics = (await api.get("/metrics")).body.decode()
    assert 'podium_rpc_failovers_total{cause="agent-unreachable"} 1.0' in metrics
    assert "podium_rpc_breakers_open 1.0" in metrics


async def test_many_dead_instances_cost_one_call_each(serve: Serve, pods: dict[str, Pod], instances: Instances) -> None:
    """G64: one call tries them all if it must, within the time for connecting."""
    api = await serve(breaker_pause=LONG)
    async with refused_address() as nowhere:
        await deployed(api, instances, {"a": pods["a"].url} | {f"dead-{number}": nowhere for number in range(20)})
        assert await answers(api, 20) == {(200, "a"): 20}


async def test_an_unreachable_machine_takes_its_share_of_the_time(
    serve: Serve, pods: dict[str, Pod], instances: Instances
) -> None:
    """G64: two of three instances drop all packets: each call is answered within the time for connecting."""
    api = await serve(connect_timeout=CONNECT, breaker_failures=1000)
    with full_backlog() as first, full_backlog() as second:
        await deployed(api, instances, {"a": pods["a"].url, "far": first, "away": second})
        began = perf_counter()
        found = await asyncio.gather(*(api.post(RPC, {"id": number}) for number in range(20)))
        assert perf_counter() - began < CONNECT.total_seconds() + 5
    assert {(answer.status, answer.headers[NAMED]) for answer in found} == {(200, "a")}


async def test_a_denied_address_moves_on(serve: Serve, pods: dict[str, Pod], instances: Instances) -> None:
    """G64: an instance that may not be dialled costs its siblings nothing."""
    api = await serve(breaker_pause=LONG)
    await deployed(api, instances, {"a": pods["a"].url, "denied": "http://169.254.169.254"})
    assert await answers(api, 20) == {(200, "a"): 20}
    assert 'podium_rpc_failovers_total{cause="destination-denied"} 1.0' in (await api.get("/metrics")).body.decode()


async def test_a_call_that_was_sent_is_not_sent_again(serve: Serve, pods: dict[str, Pod], instances: Instances) -> None:
    """G64: an instance that took the call may have acted on it."""
    api = await serve(first_byte_timeout=timedelta(milliseconds=200), breaker_failures=1000)
    async with raw_pod(b"") as rude, raw_pod(None, close=False) as silent:
        await deployed(api, instances, {"rude": rude.url, "silent": silent.url})
        reasons = set()
        for number in range(30):
            answer = await api.post(RPC, {"id": number})
            assert answer.json["error"]["data"]["sent"]
            reasons.add(answer.json["error"]["data"]["reason"])
        assert reasons == {"agent-hung-up", "first-byte-timeout"}
        assert len(rude.seen) + len(silent.seen) == 30
    assert not any(pod.seen for pod in pods.values())


async def test_when_all_are_dead_the_call_is_refused_with_the_reason(serve: Serve, instances: Instances) -> None:
    """G65: 502 with the last one's reason, then 503 as soon as all breakers are open; a new pod is called at once."""
    api = await serve(breaker_failures=3, breaker_pause=LONG)
    async with refused_address() as nowhere, running_pod() as pod:
        await deployed(api, instances, dict.fromkeys(("a", "b", "c"), nowhere))
        for _ in range(3):
            (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")
        answer = await api.post(RPC, {"id": 1})
        answer.rpc_error(503, "breaker-open")
        assert 50 <= int(answer.headers["retry-after"]) <= 60
        await instances.add("v1", {"b": pod.url})
        assert await answers(api, 10) == {(200, "b"): 10}


async def test_when_all_are_away_the_call_times_out(serve: Serve, instances: Instances) -> None:
    """G65: 504 within the time for connecting, which all attempts share."""
    api = await serve(connect_timeout=CONNECT)
    with full_backlog() as first, full_backlog() as second:
        await deployed(api, instances, {"far": first, "away": second})
        began = perf_counter()
        (await api.post(RPC, {"id": 1})).rpc_error(504, "connect-timeout")
        assert perf_counter() - began < CONNECT.total_seconds() + 2


async def test_a_restarting_last_instance_is_waited_for(serve: Serve, instances: Instances) -> None:
    """A refused connection of the only instance left is tried again for a moment, as without instances."""
    api = await serve(breaker_pause=LONG)
    async with refused_address() as nowhere, AsyncExitStack() as stack:
        port = int(nowhere.rsplit(":", 1)[1])
        await deployed(api, instances, {"a": nowhere, "b": nowhere})
        call = asyncio.create_task(api.post(RPC, {"id": 1}))
        await asyncio.sleep(0.03)
        await stack.enter_async_context(running_pod(port=port))
        assert (await call).status == 200


@pytest.mark.parametrize("dead", [False, True], ids=["all", "one-dead"])
async def test_a_card_comes_from_an_instance_that_answers(api: Api, instances: Instances, *, dead: bool) -> None:
    """G64: with the headers of that instance."""
    async with refused_address() as nowhere, AsyncExitStack() as stack:
        pod = await stack.enter_async_context(running_pod(serving(a_card())))
        await deployed(api, instances, {"a": pod.url, "b": nowhere if dead else pod.url})
        for _ in range(10):
            answer = await api.get(f"/agents/name/bot{CARD}")
            assert answer.status == 200
            assert answer.headers[NAMED] in ({"a"} if dead else {"a", "b"})
            assert answer.json["url"].endswith(RPC)
