"""Clients of event streams: many, slow and disconnecting ones; outages of the database; shutdown."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from litestar import Litestar
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from api.app import ApiServer
from api.resources import provide_resources
from services.settings import Settings
from services.storage.database import Sessions, async_url, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.streams import listening, write_event
from tests.support.apps import serving
from tests.support.processes import api_process
from tests.support.waiting import eventually

CLIENTS = 500
ROUNDS = 10
OPEN_FILES = 4096


@asynccontextmanager
async def a_server(settings: Settings) -> AsyncIterator[tuple[ApiServer, Api]]:
    """A running server whose state the test can read."""
    async with (
        serving(settings.model_copy(update={"port": 0})) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client,
    ):
        yield server, Api(f"http://{server.addresses[0]}", client)


def clients_of(server: ApiServer) -> int:
    """How many clients the process counts."""
    assert isinstance(server.config.app, Litestar)
    return provide_resources(server.config.app.state).events.clients


@pytest.fixture
def open_files() -> Any:
    """Raise the limit of file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("open_files")
async def test_five_hundred_clients_get_each_event_within_a_second(
    settings: Settings,
    sessions: Sessions,
    tmp_path: Path,
    record_property: Any,
) -> None:
    """Half of them follow all events, half one agent, on one process."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    loop = asyncio.get_running_loop()
    async with (
        api_process(settings, tmp_path) as url,
        aiohttp.ClientSession(connector=connector) as client,
        AsyncExitStack() as stack,
    ):
        api = Api(url, client)
        agent = await api.register("bot", "v1")
        paths = ["/events", f"/agents/{agent['id']}/events"] * (CLIENTS // 2)
        clients = [await stack.enter_async_context(listening(api, path)) for path in paths]
        worst = 0.0
        for number in range(ROUNDS):
            subject = f"s{number}"
            await in_transaction(sessions, partial(write_event, agent_name="bot", subject=subject))
            committed = loop.time()
            for each in clients:
                await each.until_subject(subject, seconds=5)
            worst = max(worst, *(each.events[-1].at - committed for each in clients))
        assert all(each.subjects[-ROUNDS:] == [f"s{number}" for number in range(ROUNDS)] for each in clients)
    record_property("worst_seconds", worst)
    assert worst < 1, worst


async def test_a_client_that_stops_reading_loses_nothing_and_delays_no_others(
    settings: Settings, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it reads again it receives every event once and in order, from the database if necessary."""
    monkeypatch.setattr("api.events.fanout.AGENT_BYTES", 200_000)
    events, size = 120, 100_000
    async with a_server(settings) as (_, api):
        agent = await api.register("bot")
        path = f"/agents/{agent['id']}/events"
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(api.host_and_port)
            slow.sendall(f"GET {path} HTTP/1.1\r\nhost: {api.host_and_port[0]}\r\n\r\n".encode())
            slow.setblocking(False)  # noqa: FBT003 - the standard library's way
            loop = asyncio.get_running_loop()
            answered = await loop.sock_recv(slow, 4096)
            assert b" 200 " in answered
            async with listening(api, path) as quick:
                for number in range(events):
                    write = partial(write_event, agent_name="bot", subject=f"s{number}", size=size)
                    await in_transaction(sessions, write)
                await quick.until(events, seconds=10)
            got = bytearray(answered)
            while f'"subject":"s{events - 1}"'.encode() not in got:
                got += await asyncio.wait_for(loop.sock_recv(slow, 1 << 20), 10)
    lines = bytes(got).split(b"\n")
    sequences = [int(line.removeprefix(b"id: ")) for line in lines if line.startswith(b"id: ")]
    assert sequences == list(range(1, events + 2))


async def test_disconnected_clients_leave_no_resources_behind(settings: Settings) -> None:
    """No task, no topic client, no database connection."""
    async with a_server(settings) as (server, api):
        agent = await api.register("bot", "v1")
        before = len(asyncio.all_tasks())
        for _ in range(3):
            async with AsyncExitStack() as stack:
                for path in ("/events", f"/agents/{agent['id']}/events") * 10:
                    await stack.enter_async_context(listening(api, path))

                async def all_there() -> bool:
                    return clients_of(server) == 20

                await eventually(all_there, "all clients are followers")

            async def all_gone() -> bool:
                return clients_of(server) == 0 and len(asyncio.all_tasks()) <= before

            await eventually(all_gone, "nothing is left")


async def test_a_server_that_stops_ends_its_streams_at_once(settings: Settings) -> None:
    """Within a second and without an error, so that clients reconnect with their cursors."""
    async with a_server(settings) as (server, api):
        agent = await api.register("bot", "v1")
        async with listening(api, f"/agents/{agent['id']}/events") as own, listening(api, "/events") as all_events:
            loop = asyncio.get_running_loop()
            stopped = loop.time()
            server.stop()
            await own.until_end()
            await all_events.until_end()
            assert loop.time() - stopped < 1


async def test_streams_survive_an_outage_of_the_database(settings: Settings, sessions: Sessions) -> None:
    """They stay open and send heartbeats; events committed meanwhile arrive when the database is back."""
    url = make_url(settings.database_url.get_secret_value())
    admin = create_async_engine(
        async_url(settings.database_url.get_secret_value()).set(database="postgres"), isolation_level="AUTOCOMMIT"
    )
    async with a_server(settings.model_copy(update={"sse_heartbeat": timedelta(seconds=0.1)})) as (_, api):
        agent = await api.register("bot", "v1")
        async with (
            listening(api, f"/agents/{agent['id']}/events") as own,
            listening(api, "/events") as all_events,
            admin.connect() as connection,
            sessions() as session,
        ):
            await session.connection()
            await connection.execute(text(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false'))
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'podium-api' AND datname = :name"
                ),
                {"name": url.database},
            )
            await write_event(session, "bot", "meanwhile")
            await session.commit()
            (await api.get("/events")).problem(503, "database-unavailable")
            for listener in (own, all_events):
                heard = len(listener.blocks)

                async def alive(listener: Any = listener, heard: int = heard) -> bool:
                    return len(listener.blocks) > heard + 5

                await eventually(alive, "signs of life")
                assert not listener.events
            await connection.execute(text(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true'))
            for listener in (own, all_events):
                await listener.until_subject("meanwhile")
    await admin.dispose()
