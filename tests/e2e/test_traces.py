"""Traces, from real processes to a collector."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from uuid import uuid4

import aiohttp
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from contracts import topology
from podium.servers.ports import free_ports
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.api.pods import plain_answer, running_pod, silent_port
from tests.support.broker import publish
from tests.support.collector import Collector, ReceivedSpan, running_collector
from tests.support.factories import a_body
from tests.support.processes import api_process, environment, program, worker_process
from tests.support.waiting import eventually, eventually_rows

TRACE, PUBLISHED = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROCESS, TRANSACTION, PUBLISH = "process podium.registrations", "register_batch", "publish podium.events"
RPC = "POST /agents/name/{name}/rpc"


async def promotion_of(broker: AbstractConnection, agent: str) -> "asyncio.Future[AbstractIncomingMessage]":
    """The message of the first promotion of this agent, once it is published."""
    found: asyncio.Future[AbstractIncomingMessage] = asyncio.get_running_loop().create_future()
    channel = await broker.channel()
    queue = await channel.declare_queue(f"test.{uuid4().hex}", exclusive=True)
    await queue.bind(topology.EVENTS_EXCHANGE, f"*.deployment.promoted.{agent}")
    await queue.bind(topology.EVENTS_EXCHANGE, "#")

    async def keep(message: AbstractIncomingMessage) -> None:
        if message.type == "podium.deployment.promoted.v1" and agent.encode() in message.body and not found.done():
            found.set_result(message)

    await queue.consume(keep, no_ack=True)
    return found


async def the_one(collector: Collector, name: str, trace_id: str = TRACE, **attributes: object) -> ReceivedSpan:
    """The one span with this name in the trace, once it has arrived."""

    def found() -> list[ReceivedSpan]:
        return [each for each in collector.named(name, **attributes) if each.trace_id == trace_id]

    async def arrived() -> bool:
        return bool(found())

    await eventually(arrived, f"{name} has arrived")
    [span] = found()
    return span


async def test_one_trace_leads_from_the_announcement_to_the_call(
    broker: AbstractConnection, settings: Settings, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The pod's publish is the root; registrar, transaction, relay, gateway and agent continue its trace."""
    promotion = await promotion_of(broker, "bot")
    async with running_collector() as collector, running_pod() as pod:
        env = collector.environment()
        for name, headers in (("bot", {"traceparent": f"00-{TRACE}-{PUBLISHED}-01"}), ("other", {}), ("third", {})):
            body = a_body(name, deployment_id=f"{name}-v1", acp_url=pod.url)
            await publish(broker, body, headers=headers, message_id=f"message of {name}")
        async with (
            worker_process(settings, tmp_path, PODIUM_BATCH_LINGER="PT0.5S", **env),
            api_process(settings, tmp_path, **env) as url,
        ):
            event = await asyncio.wait_for(promotion, 20)
            sent = {
                "traceparent": str(event.headers["traceparent"]),
                "mcp-method": "tools/call",
                "mcp-name": "search",
                "x-secret": "hidden",
            }
            async with client.post(f"{url}/agents/name/bot/rpc?q=hidden", json={"hidden": 1}, headers=sent) as answer:
                assert answer.status == 200
            registered = await the_one(collector, PROCESS)
            decided = await the_one(collector, TRANSACTION)
            published = await the_one(collector, PUBLISH, podium_event_type="podium.deployment.promoted.v1")
            server, call = await the_one(collector, RPC), await the_one(collector, "tools/call")

    assert registered.parent_id == PUBLISHED
    assert decided.parent_id == registered.span_id
    assert published.parent_id == registered.span_id
    assert event.headers["traceparent"] == published.traceparent
    assert f'"traceparent":"{registered.traceparent}"'.encode() in event.body
    assert (server.parent_id, call.parent_id) == (published.span_id, server.span_id)
    [forwarded] = [each for each in pod.seen if each.method == "POST"]
    assert forwarded.header("traceparent") == [call.traceparent], "probes, which are GET, have no trace"
    kinds = [(each.service, each.kind) for each in (registered, decided, published, server, call)]
    assert kinds == [
        ("podium-worker", "consumer"),
        ("podium-worker", "client"),
        ("podium-worker", "producer"),
        ("podium-api", "server"),
        ("podium-api", "client"),
    ]
    check_conventions(collector, registered, published, call)
    assert not re.search("hidden", repr(collector.spans)), "no body, query or header is in a span"


def check_conventions(
    collector: Collector, registered: ReceivedSpan, published: ReceivedSpan, call: ReceivedSpan
) -> None:
    """The semantic conventions for messaging, with batches, and for generative AI."""
    assert registered.attributes["messaging.system"] == published.attributes["messaging.system"] == "rabbitmq"
    assert registered.attributes["messaging.operation.type"] == "process"
    assert published.attributes["messaging.operation.type"] == "send"
    assert registered.attributes["messaging.message.id"] == "message of bot"
    assert registered.attributes["podium.outcome"] == "Registered"
    [batch] = [each for each in collector.named(PROCESS) if "messaging.batch.message_count" in each.attributes]
    assert batch.attributes["messaging.batch.message_count"] == 3
    assert batch.trace_id != registered.trace_id
    assert batch.links == [f"{TRACE}-{PUBLISHED}"]
    ids = {each.span_id for each in collector.named(PROCESS) if each.links == [f"{batch.trace_id}-{batch.span_id}"]}
    assert len(ids) == 3
    assert registered.span_id in ids
    agent = {name: call.attributes[f"gen_ai.agent.{name}"] for name in ("name", "version")}
    assert agent == {"name": "bot", "version": "bot-v1"}
    assert call.attributes["gen_ai.agent.id"] == registered.attributes["gen_ai.agent.id"]
    assert call.attributes["gen_ai.operation.name"] == "execute_tool"
    assert call.attributes["gen_ai.tool.name"] == "search"
    assert call.attributes["podium.generation"] == 1
    assert call.attributes["http.response.status_code"] == 200


@asynccontextmanager
async def broken_collector(kind: str) -> AsyncIterator[str]:
    """The URL of a collector that never answers, refuses connections, or fails."""
    if kind == "silent":
        async with silent_port() as port:
            yield f"http://127.0.0.1:{port}"
    elif kind == "refuses":
        yield f"http://127.0.0.1:{free_ports(['nobody'])['nobody']}"
    else:
        async with running_collector(status=500) as collector:
            yield collector.url


async def answers(client: aiohttp.ClientSession, url: str) -> bool:
    """Whether the API is there and forwards a call."""
    try:
        async with client.post(url, json={}) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("kind", ["silent", "refuses", "fails"])
async def test_a_collector_that_is_away_delays_nothing(
    kind: str,
    broker: AbstractConnection,
    settings: Settings,
    sessions: Sessions,
    client: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    """G98: calls, registrations and stops are as quick and as sure as without traces, also with the queue full."""
    async with broken_collector(kind) as collector, running_pod(plain_answer) as pod:
        env = Collector(collector).environment() | {
            "OTEL_BSP_MAX_QUEUE_SIZE": "20",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5",
        }
        port = str(free_ports(["api"])["api"])
        api_env = environment(settings, PODIUM_PORT=port, **env)
        url = f"http://127.0.0.1:{port}/agents/name/bot/rpc"
        log = tmp_path / "log"
        async with (
            program("podium api", api_env, log) as api,
            program("podium worker registrar relay", environment(settings, **env), log) as worker,
        ):
            for number in range(50):
                await publish(broker, a_body("bot", deployment_id=f"v{number}", acp_url=pod.url))
            await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 50)
            await eventually(lambda: answers(client, url), "the API forwards a call")
            slowest = 0.0
            for _ in range(100):
                began = monotonic()
                async with client.post(url, json={}) as answer:
                    assert answer.status == 200, await answer.text()
                slowest = max(slowest, monotonic() - began)
            began = monotonic()
            await asyncio.gather(api.stop(), worker.stop())
            stopped = monotonic() - began
            assert (api.code, worker.code) == (0, 0), log.read_text()
    assert slowest < 5, "the exporter itself gives up after ten seconds"
    assert stopped < 8
    assert log.read_text().count("traces.lost") <= 2, "once a minute, of each process"


# Refuses every module of OpenTelemetry, as if the extra were missing, and writes down who asked for which.
REFUSING = """
import importlib.abc, sys

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("opentelemetry."):
            with open({attempts!r}, "a") as file:
                print(sys.argv[1], name, file=file)
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)

sys.meta_path.insert(0, Refusing())
"""
# FastStream looks whether this empty package is there, whatever Podium does.
OF_FASTSTREAM = {"api opentelemetry.semconv", "worker opentelemetry.semconv"}


@pytest.fixture
def without_extra(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which OpenTelemetry is not installed, and a file of the attempts to import it."""
    folder, attempts = tmp_path / "refusing", tmp_path / "attempts"
    folder.mkdir()
    attempts.touch()
    (folder / "sitecustomize.py").write_text(REFUSING.format(attempts=str(attempts)))
    return {"PYTHONPATH": str(folder), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, attempts


async def test_without_the_extra_everything_works_while_traces_are_off(
    without_extra: tuple[dict[str, str], Path],
    broker: AbstractConnection,
    settings: Settings,
    sessions: Sessions,
    client: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    """No process imports OpenTelemetry, for a registration, an event or a call, whatever OTEL_* variables say."""
    env, attempts = without_extra
    async with (
        running_pod() as pod,
        worker_process(settings, tmp_path, **env),
        api_process(settings, tmp_path, **env) as url,
    ):
        await publish(broker, a_body("bot", deployment_id="v1", acp_url=pod.url))
        await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL")
        async with client.post(f"{url}/agents/name/bot/rpc", json={}) as answer:
            assert answer.status == 200
    assert set(attempts.read_text().splitlines()) == OF_FASTSTREAM


@pytest.mark.parametrize("part", ["api", "worker"])
async def test_without_the_extra_a_process_with_traces_does_not_start(
    part: str, without_extra: tuple[dict[str, str], Path], settings: Settings, tmp_path: Path
) -> None:
    """It says what to install, and exits with the code for wrong usage."""
    env, _ = without_extra
    log = tmp_path / "log"
    async with program(f"podium {part}", environment(settings, PODIUM_TRACES="otlp", **env), log) as process:
        await asyncio.wait_for(process.ended(), 20)
    assert process.code == 2
    assert "pip install 'podium[otel]'" in log.read_text()
