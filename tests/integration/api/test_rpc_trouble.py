"""One failing agent: its circuit breaker opens, and other agents are not affected."""

import asyncio
from datetime import timedelta
from time import perf_counter

from aiohttp import web

from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, raw_pod, refused_address, running_pod
from tests.support.waiting import eventually

RPC = "/agents/name/bot/rpc"
OTHER = "/agents/name/other/rpc"
LONG = timedelta(seconds=60)


async def test_refused_connections_open_the_circuit_breaker(serve: Serve, pod: Pod) -> None:
    """502 for each attempt, then 503 at once with Retry-After; another agent is not affected."""
    api = await serve(breaker_failures=3, breaker_pause=LONG)
    await api.register("other", "o1", acp_url=pod.url)
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        for _ in range(3):
            (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")
        answer = await api.post(RPC, {"id": 1})
        answer.rpc_error(503, "breaker-open")
        assert 50 <= int(answer.headers["retry-after"]) <= 60
        assert (await api.post(OTHER, {})).status == 200
        assert "podium_rpc_breakers_open 1.0" in (await api.get("/metrics")).body.decode()


async def test_timeouts_open_the_circuit_breaker(serve: Serve) -> None:
    """After several calls without a first byte, each of which reports that it was sent."""
    api = await serve(breaker_failures=2, breaker_pause=LONG, first_byte_timeout=timedelta(milliseconds=200))
    async with raw_pod(None, close=False) as silent:
        await api.register("bot", "v1", acp_url=silent.url)
        for _ in range(2):
            (await api.post(RPC, {"id": 1})).rpc_error(504, "first-byte-timeout", sent=True)
        (await api.post(RPC, {"id": 1})).rpc_error(503, "breaker-open")
    assert len(silent.seen) == 2


async def test_an_open_circuit_breaker_tests_the_agent_again(serve: Serve, pod: Pod) -> None:
    """With one call after the pause, or at once after a new registration."""
    api = await serve(breaker_failures=1, breaker_pause=timedelta(milliseconds=300))
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        (await api.post(RPC, {})).rpc_error(502, "agent-unreachable")
        (await api.post(RPC, {})).rpc_error(503, "breaker-open")

        async def is_tried() -> bool:
            return (await api.post(RPC, {})).status == 502

        await eventually(is_tried, "the agent is tried again")

    patient = await serve(breaker_failures=1, breaker_pause=LONG)
    (await patient.post(RPC, {})).rpc_error(502, "agent-unreachable")
    (await patient.post(RPC, {})).rpc_error(503, "breaker-open")
    await patient.register("bot", "v1", acp_url=pod.url)
    assert (await patient.post(RPC, {})).status == 200


async def test_any_answer_counts_as_success(serve: Serve) -> None:
    """An agent that answers 500 or closes the connection can be reached, so its breaker stays closed."""

    async def failing(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=500)

    api = await serve(breaker_failures=1, breaker_pause=LONG)
    async with running_pod(failing) as pod, raw_pod(b"") as rude:
        await api.register("bot", "v1", acp_url=pod.url)
        await api.register("other", "o1", acp_url=rude.url)
        for _ in range(3):
            assert (await api.post(RPC, {})).status == 500
            (await api.post(OTHER, {})).rpc_error(502, "agent-hung-up", sent=True)


async def test_a_slow_agent_does_not_starve_the_others(serve: Serve, pod: Pod) -> None:
    """Its calls in flight are limited, a further call is refused at once, and other agents are served."""
    finish = asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        await finish.wait()
        return web.Response(text="done")

    most, too_many = 40, 60
    api = await serve(calls_per_deployment=most)
    await api.register("other", "o1", acp_url=pod.url)
    async with running_pod(slow) as slow_pod, asyncio.timeout(30):
        await api.register("bot", "v1", acp_url=slow_pod.url)
        calls = [asyncio.create_task(api.post(RPC, {"id": number})) for number in range(most + too_many)]

        async def refused() -> bool:
            return sum(call.done() for call in calls) == too_many

        await eventually(refused, "those that are too many are told")
        for answer in (call.result() for call in calls if call.done()):
            answer.rpc_error(503, "too-many-calls")
            assert answer.headers["retry-after"] == "1"
        assert {answer.status for answer in await one_after_another(api, 20)} == {200}
        finish.set()
        statuses = sorted(answer.status for answer in await asyncio.gather(*calls))
    assert statuses == [200] * most + [503] * too_many
    assert len(slow_pod.seen) == most


async def one_after_another(api: Api, count: int) -> list[Answer]:
    """Calls to the other agent, each of which must be quick."""
    answers = []
    for _ in range(count):
        began = perf_counter()
        answers.append(await api.post(OTHER, {}))
        assert perf_counter() - began < 5
    return answers
