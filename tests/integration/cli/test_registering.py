"""`podium register` with a broker that is unavailable or has no queues, as a sidecar, and over HTTP."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from yarl import URL

from contracts.messages import DeregisterInstance, RegisterAgent
from contracts.topology import REGISTRATIONS_QUEUE
from podium.servers.ports import free_ports
from services.settings import Settings
from tests.integration.api.client import Api
from tests.integration.cli.terminal import Terminal
from tests.integration.workers.conftest import working
from tests.support.waiting import eventually
from workers.runner import run_registrar

POD = ["--name", "bot", "--acp-url", "http://10.0.0.7:8000", "--deployment", "v1"]


async def next_message(broker: AbstractConnection) -> AbstractIncomingMessage:
    """The next registration on the queue."""
    channel = await broker.channel()
    queue = await channel.get_queue(REGISTRATIONS_QUEUE)
    found: list[AbstractIncomingMessage] = []

    async def arrived() -> bool:
        message = await queue.get(no_ack=True, fail=False)
        found.extend([message] if message is not None else [])
        return message is not None

    await eventually(arrived, "a registration on the queue")
    await channel.close()
    return found[0]


@asynccontextmanager
async def proxy_to(host: str, port: int, listen: int) -> AsyncIterator[None]:
    """Forward another port to the broker, inside the block."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        both = [asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))]
        tasks.update(both)
        await asyncio.wait(both)

    async with await asyncio.start_server(join, "127.0.0.1", listen):
        yield
        await asyncio.wait(tasks, timeout=10)


async def line_of(stream: asyncio.StreamReader | None) -> str:
    """The next line that a running command prints."""
    assert stream is not None
    async with asyncio.timeout(20):
        return (await stream.readline()).decode()


async def test_the_command_waits_for_an_unavailable_broker(terminal: Terminal, broker: AbstractConnection) -> None:
    """It prints the cause once, sends the same message again, and ends when the broker has confirmed it."""
    url = URL(terminal.variables["PODIUM_AMQP_URL"])
    assert url.host is not None
    assert url.port is not None
    port = free_ports(["broker"])["broker"]
    away = str(url.with_port(port))
    process = await terminal.started("register", *POD, PODIUM_AMQP_URL=away, TRACEPARENT=f"00-{'a' * 32}-{'b' * 16}-01")
    line = await line_of(process.stderr)
    assert f"127.0.0.1:{port} cannot be used" in line
    assert str(url.password) not in line
    async with proxy_to(url.host, url.port, port):
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
        assert b"confirmed by the broker" in out
    message = await next_message(broker)
    announced = RegisterAgent.model_validate_json(message.body)
    assert (announced.name, announced.deployment_id) == ("bot", "v1")
    assert message.routing_key == "agent.bot"
    assert message.headers["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"


async def test_a_broker_without_queues_is_a_failure(terminal: Terminal, broker: AbstractConnection) -> None:
    """A message that no queue takes is never confirmed."""
    channel = await broker.channel()
    await channel.queue_delete(REGISTRATIONS_QUEUE)
    ran = await terminal.quick("register", *POD, "--timeout", "1s", "--json")
    assert ran.code == 3
    assert "podium migrate" in ran.error
    nothing = await terminal.quick("register", *POD, "--timeout", "1s", PODIUM_AMQP_URL="")
    assert nothing.code == 2
    assert "--http" in nothing.error


async def test_a_sidecar_announces_until_sigterm(terminal: Terminal, broker: AbstractConnection) -> None:
    """Each announcement is a new message; after SIGTERM the exit code is 0."""
    process = await terminal.started("register", *POD, "--every", "1s", "--quiet")
    # The third message is published after the first two are confirmed and printed.
    messages = [await next_message(broker) for _ in range(3)][:2]
    process.send_signal(signal.SIGTERM)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (0, b"")
    announced = [RegisterAgent.model_validate_json(message.body) for message in messages]
    assert out.decode().split()[:2] == [str(each.message_id) for each in announced]
    assert announced[0].message_id != announced[1].message_id
    assert announced[0].registered_at < announced[1].registered_at


async def test_over_http_a_refusal_is_final(api: Api, terminal: Terminal) -> None:
    """A refusal is not repeated."""
    registered = await terminal.quick("register", *POD, "--http", "--image", "bot:1", "--fact", "team=emea", "--json")
    assert registered.json["confirmed_by"] == "api"
    stored = (await api.get("/deployments/v1")).json
    assert stored["registration_metadata"]["team"] == "emea"
    refused = await terminal.quick("register", *POD, "--http", "--image", "bot:2", "--json")
    assert refused.code == 5
    assert "another image" in refused.error
    listed = await terminal.quick("registrations", "bot")
    assert [line.split()[2] for line in listed.out.splitlines()] == ["OUTCOME", "Rejected", "Registered"]


async def test_an_invalid_pod_is_refused_with_the_variable(terminal: Terminal) -> None:
    """Before a message is sent; the error names the variable."""
    unnamed = await terminal.quick("register", ACP_URL="http://10.0.0.7", ACP_PORT="8000")
    assert (unnamed.code, "AGENT_NAME" in unnamed.error) == (2, True)
    bad = await terminal.quick("register", AGENT_NAME="bot", ACP_URL="10.0.0.7")
    assert (bad.code, "ACP_URL" in bad.error) == (2, True)


@pytest.mark.usefixtures("broker")
async def test_the_registrar_s_reply_is_the_outcome(settings: Settings, terminal: Terminal) -> None:
    """An applied announcement succeeds; a refused one is an error with the reason, as over HTTP."""
    async with working(run_registrar, settings):
        registered = await terminal.run("register", *POD, "--image", "bot:1")
        assert registered.out == "Announced bot v1 at http://10.0.0.7:8000, confirmed by the broker.\n"
        assert registered.err == "The announcement was applied.\n"
        assert (await terminal.run("register", *POD, "--json")).json["outcome"] == "Registered"
        thief = await terminal.run("register", *POD, "--name", "thief")
        assert thief.code == 5
        assert thief.error.startswith("thief v1 was refused: The deployment id belongs to another agent")
        another = await terminal.run("register", *POD, "--image", "bot:2", "--every", "1s", "--quiet")
        assert (another.code, "another image" in another.error) == (5, True)
    undecided = await terminal.run("register", *POD, "--timeout", "1s")
    assert undecided.code == 0
    assert "'podium registrations --agent bot' shows" in undecided.err


async def test_a_sidecar_says_goodbye_for_its_instance(terminal: Terminal, broker: AbstractConnection) -> None:
    """At SIGTERM, with a message that is newer than its announcements."""
    process = await terminal.started("register", *POD, "--instance", "pod-1", "--every", "60s", "--quiet")
    announced = RegisterAgent.model_validate_json((await next_message(broker)).body)
    assert announced.instance_id == "pod-1"
    process.send_signal(signal.SIGTERM)
    message = await next_message(broker)
    goodbye = DeregisterInstance.model_validate_json(message.body)
    assert message.routing_key == "agent.bot"
    assert (goodbye.name, goodbye.deployment_id, goodbye.instance_id) == ("bot", "v1", "pod-1")
    assert goodbye.registered_at > announced.registered_at
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_instances_in_the_terminal(api: Api, terminal: Terminal) -> None:
    """Announced, shown with their health, deregistered; what is missing is named."""
    for name in ("pod-1", "pod-2"):
        await terminal.quick("register", *POD, "--instance", name, "--http")
    shown = await terminal.quick("deployments", "show", "v1")
    assert "pod-1 Ready at http://10.0.0.7:8000" in shown.out
    gone = await terminal.quick(
        "deregister", "--name", "bot", "--deployment", "v1", "--instance", "pod-1", "--http", "--json"
    )
    assert gone.json["confirmed_by"] == "api"
    instances = (await api.get("/deployments/v1")).json["instances"]
    assert [each["instance_id"] for each in instances] == ["pod-2"]
    assert "instance gets no further calls" in (await terminal.quick("registrations", "bot")).out
    missing = await terminal.quick("deregister", "--name", "bot", "--deployment", "v1")
    assert missing.code == 2
    assert "AGENT_INSTANCE_ID or --instance" in missing.err
