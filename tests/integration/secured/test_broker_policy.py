"""The users of `podium broker-policy`, each tried on a real broker: what it needs works, all else is refused."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aio_pika import ExchangeType, Message, connect
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused
from pydantic import SecretStr
from pydantic_core import to_json
from yarl import URL

from contracts import topology
from contracts.events import CloudEvent
from podium.migration import migrate_all
from services.settings import Settings
from services.storage.database import Sessions, close_engine, make_engine
from tests.integration.api.client import running_api
from tests.integration.cli.terminal import Terminal
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.secured_servers import SecuredServers
from tests.support.waiting import eventually_rows
from workers.runner import run_drainer, run_janitor, run_registrar, run_relay

AGENT, CONSUMER = "bot", "billing"
POLICY = ["broker-policy", "--agent", AGENT, "--consumer", CONSUMER]


@pytest.fixture(scope="module")
def administrator(secured: SecuredServers, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A shell with the rights of the broker's administrator."""
    url = URL(secured.management_url)
    auth = f"{url.user}:{url.password}"
    return Terminal(tmp_path_factory.mktemp("administrator"), {"PODIUM_MANAGEMENT_AUTH": auth})


@pytest.fixture(scope="module")
def address(secured: SecuredServers) -> str:
    """The address of the management API, without a user."""
    return str(URL(secured.management_url).with_user(None))


@pytest_asyncio.fixture(scope="module")
async def urls(secured: SecuredServers, administrator: Terminal, address: str) -> dict[str, str]:
    """The broker's URL for each user of the applied policy."""
    ran = await administrator.quick(*POLICY, "--apply", address, "--json")
    assert ran.code == 0, ran
    amqp = URL(secured.amqp_url)
    return {row["user"]: str(amqp.with_user(row["user"]).with_password(row["password"])) for row in ran.json}


@pytest_asyncio.fixture(scope="module")
async def system(secured: SecuredServers, urls: dict[str, str]) -> Settings:
    """Settings of the workers' user; the migrate user has declared exchanges and queues."""
    settings = Settings(
        database_url=SecretStr(secured.database_url),
        amqp_url=SecretStr(urls["podium-migrate"]),
        secret_key=SecretStr("a test's secret key"),
    )
    await migrate_all(settings, lambda _: None)
    return settings.model_copy(update={"amqp_url": SecretStr(urls["podium-worker"])})


Attempt = Callable[[AbstractChannel], Awaitable[Any]]


async def may(url: str, attempt: Attempt) -> bool:
    """Whether the broker lets this user do this; an error other than a missing permission fails the test."""
    async with await connect(url) as connection:
        try:
            await attempt(await connection.channel(on_return_raises=True))
        except ChannelAccessRefused:
            return False
        return True


def publishing(exchange: str, key: str) -> Attempt:
    """Publish a message, and wait for the confirm."""

    async def attempt(channel: AbstractChannel) -> None:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(Message(b"{}"), key, mandatory=False)

    return attempt


def declaring(queue: str) -> Attempt:
    """Declare a queue."""
    return lambda channel: channel.declare_queue(queue, durable=True)


def consuming(queue: str) -> Attempt:
    """Consume from a queue."""

    async def ignore(_: object) -> None:
        """Leave the message unacknowledged."""

    async def attempt(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).consume(ignore)

    return attempt


def binding(queue: str, exchange: str) -> Attempt:
    """Bind a queue to an exchange."""

    async def attempt(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).bind(exchange, "#")

    return attempt


async def purging(channel: AbstractChannel) -> None:
    """Purge the queue of registrations."""
    await (await channel.get_queue(topology.REGISTRATIONS_QUEUE, ensure=False)).purge()


# What nobody but the migrate user may do.
CHANGES: dict[str, Attempt] = {
    "declare a queue": declaring("mine"),
    "declare Podium's queue": declaring(topology.REGISTRATIONS_QUEUE),
    "declare an exchange": lambda channel: channel.declare_exchange("mine", ExchangeType.TOPIC),
    "delete the queue": lambda channel: channel.queue_delete(topology.REGISTRATIONS_QUEUE),
    "delete the parked queue": lambda channel: channel.queue_delete(topology.PARKED_QUEUE),
    "delete the exchange": lambda channel: channel.exchange_delete(topology.EVENTS_EXCHANGE),
    "bind the queue to events": binding(topology.REGISTRATIONS_QUEUE, topology.EVENTS_EXCHANGE),
}
READS: dict[str, Attempt] = {
    "consume announcements": consuming(topology.REGISTRATIONS_QUEUE),
    "consume dead letters": consuming(topology.PARKED_QUEUE),
    "purge announcements": purging,
}
ANNOUNCEMENTS: dict[str, Attempt] = {
    "announce another agent": publishing(topology.REGISTRATIONS_EXCHANGE, "agent.victim"),
    "announce a longer name": publishing(topology.REGISTRATIONS_EXCHANGE, f"agent.{AGENT}2"),
    "announce below a name": publishing(topology.REGISTRATIONS_EXCHANGE, f"agent.{AGENT}.x"),
}
PUBLISHING: dict[str, Attempt] = {
    "publish an event": publishing(topology.EVENTS_EXCHANGE, "deployment.promoted.victim"),
    "publish to a queue": publishing("", topology.REGISTRATIONS_QUEUE),
}
OWN_QUEUES: dict[str, Attempt] = {
    "read announcements": binding(f"{CONSUMER}.events", topology.REGISTRATIONS_EXCHANGE),
    "declare a name like its own": declaring(f"{CONSUMER}x.events"),
}
REFUSED = {
    f"agent-{AGENT}": CHANGES | READS | ANNOUNCEMENTS | PUBLISHING,
    f"consumer-{CONSUMER}": CHANGES
    | READS
    | ANNOUNCEMENTS
    | PUBLISHING
    | OWN_QUEUES
    | {"announce its name": publishing(topology.REGISTRATIONS_EXCHANGE, f"agent.{CONSUMER}")},
    "podium-worker": CHANGES | ANNOUNCEMENTS,
    "podium-api": CHANGES | READS | PUBLISHING,
    "podium-migrate": {
        "declare a queue": declaring("mine"),
        "consume dead letters": consuming(topology.PARKED_QUEUE),
        "publish an event": publishing(topology.EVENTS_EXCHANGE, "deployment.promoted.victim"),
    },
}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("user", REFUSED)
async def test_everything_else_is_refused(urls: dict[str, str], user: str) -> None:
    """G81: The broker refuses each user what its program does not need."""
    if user == f"consumer-{CONSUMER}":
        assert await may(urls[user], declaring(f"{CONSUMER}.events"))
    allowed = [name for name, attempt in REFUSED[user].items() if await may(urls[user], attempt)]
    assert not allowed


@asynccontextmanager
async def events_of(url: str) -> AsyncIterator["asyncio.Queue[CloudEvent]"]:
    """The events that this consumer's own queue receives."""
    received: asyncio.Queue[CloudEvent] = asyncio.Queue()

    async def keep(message: Any) -> None:
        async with message.process():
            received.put_nowait(CloudEvent.model_validate_json(message.body))

    async with await connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(f"{CONSUMER}.events", durable=True)
        await queue.bind(topology.EVENTS_EXCHANGE, "#")
        await queue.consume(keep)
        yield received


async def test_the_whole_path_runs_under_restricted_users(
    urls: dict[str, str], system: Settings, tmp_path: Path
) -> None:
    """G81: A pod registers and gets its outcome, workers work, the API retries, a consumer reads."""
    engine = make_engine(system, application_name="tests", pool_size=1)
    sessions = Sessions(engine)
    terminal = Terminal(tmp_path, {"PODIUM_AMQP_URL": urls[f"agent-{AGENT}"]})
    pod = ["--name", AGENT, "--acp-url", "http://10.0.0.7:8000", "--deployment", f"{AGENT}-v1"]
    async with (
        working(run_registrar, system),
        working(run_relay, system),
        working(run_drainer, system),
        working(run_janitor, system),
        events_of(urls[f"consumer-{CONSUMER}"]) as events,
        running_api(system.model_copy(update={"amqp_url": SecretStr(urls["podium-api"])})) as api,
    ):
        registered = await terminal.done("register", *pod, "--json")
        assert registered.json["outcome"] == "Registered"
        async with asyncio.timeout(20):
            while (await events.get()).type != "podium.deployment.promoted.v1":
                pass
        async with await connect(urls[f"agent-{AGENT}"]) as connection:
            await publish(connection, to_json(a_body(AGENT, description="x" * 70_000)), key=f"agent.{AGENT}")
            await eventually_rows(sessions, "SELECT 1 FROM parked WHERE reason = 'message-too-large'")
            await publish(connection, to_json({**a_body(AGENT), "acp_url": "ftp://10.0.0.7"}), key=f"agent.{AGENT}")
            (row,) = await eventually_rows(sessions, "SELECT id FROM parked WHERE reason = 'malformed'")
        assert (await api.post(f"/parked/{row.id}/retry")).status == 200
        assert (await api.get("/health/ready")).json["parts"]["broker"]["ok"]
        await eventually_rows(sessions, "SELECT 1 FROM parked WHERE reason = 'malformed'", 2)
    await close_engine(engine)


async def test_applying_again_restores_the_policy(
    urls: dict[str, str], administrator: Terminal, address: str, secured: SecuredServers
) -> None:
    """G81: Passwords stay, new users come, and permissions that somebody widened are what the policy says again."""
    async with aiohttp.ClientSession() as session:
        for kind, rights in (
            ("permissions", {"configure": ".*", "write": ".*", "read": ".*"}),
            ("topic-permissions", {"exchange": topology.REGISTRATIONS_EXCHANGE, "write": ".*", "read": ".*"}),
        ):
            url = URL(f"{secured.management_url}api/{kind}/%2F/agent-{AGENT}", encoded=True)
            async with session.put(url, json=rights) as response:
                assert response.ok
    assert await may(urls[f"agent-{AGENT}"], declaring("widened"))
    ran = await administrator.quick(*POLICY, "--agent", "second", "--apply", address, "--json")
    assert {row["user"] for row in ran.json if row["password"]} == {"agent-second"}
    assert not await may(urls[f"agent-{AGENT}"], declaring("widened2"))
    assert not await may(urls[f"agent-{AGENT}"], publishing(topology.REGISTRATIONS_EXCHANGE, "agent.victim"))
    assert await may(urls[f"agent-{AGENT}"], publishing(topology.REGISTRATIONS_EXCHANGE, f"agent.{AGENT}"))


async def test_a_user_with_a_tag_is_refused(administrator: Terminal, address: str, secured: SecuredServers) -> None:
    """An administrator of the broker is not made a pod's user: its tag permits more than any permission."""
    async with aiohttp.ClientSession() as session:
        url = f"{secured.management_url}api/users/agent-tagged"
        async with session.put(url, json={"password": "x", "tags": "administrator"}) as response:
            assert response.ok
    ran = await administrator.quick("broker-policy", "--agent", "tagged", "--apply", address)
    assert (ran.code, "administrator" in ran.error) == (6, True)


async def test_what_cannot_be_applied_is_refused(administrator: Terminal, address: str) -> None:
    """Without rights, with a password in the address, or where nothing listens, the command says what to do."""
    nobody = await administrator.quick("broker-policy", "--apply", address, PODIUM_MANAGEMENT_AUTH="nobody:wrong")
    assert (nobody.code, "401" in nobody.error) == (6, True)
    without = await administrator.quick("broker-policy", "--apply", address, PODIUM_MANAGEMENT_AUTH="")
    assert (without.code, "PODIUM_MANAGEMENT_AUTH" in without.error) == (2, True)
    inside = await administrator.quick("broker-policy", "--apply", address.replace("://", "://user:secret@"))
    assert (inside.code, "secret" in inside.error) == (2, False)
    nowhere = await administrator.quick("broker-policy", "--apply", "http://127.0.0.1:9")
    assert (nowhere.code, "cannot be used" in nowhere.error) == (6, True)


@pytest.mark.parametrize("options", [["--agent", "Not A Name"], ["--agent", "a.b"], ["--consumer", "podium"]])
async def test_names_that_would_permit_more_are_refused(administrator: Terminal, options: list[str]) -> None:
    """G81: No name widens a pattern, and no consumer's own queues are Podium's."""
    assert (await administrator.quick("broker-policy", *options)).code == 2


async def test_the_printed_commands_do_the_same(
    administrator: Terminal, secured: SecuredServers, system: Settings, tmp_path: Path
) -> None:
    """G81: Run by a shell with rabbitmqctl, they make the user; its password is in its file."""
    del system
    printed = (await administrator.quick("broker-policy", "--agent", "printed")).out.splitlines()
    script = "\n".join(["set -e", printed[0], *(line for line in printed if "agent-printed" in line)])
    environment = {**os.environ, **secured.rabbitmqctl(tmp_path)}
    await asyncio.to_thread(subprocess.run, ["sh", "-c", script], cwd=tmp_path, env=environment, check=True)
    password = (tmp_path / "agent-printed.password").read_text().strip()
    assert (tmp_path / "agent-printed.password").stat().st_mode & 0o077 == 0
    url = str(URL(secured.amqp_url).with_user("agent-printed").with_password(password))
    assert await may(url, publishing(topology.REGISTRATIONS_EXCHANGE, "agent.printed"))
    assert not await may(url, publishing(topology.REGISTRATIONS_EXCHANGE, f"agent.{AGENT}"))
    assert not await may(url, declaring("mine"))
