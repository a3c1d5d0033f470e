"""An upgrade as documented: migrate while the previous release works, then replace its processes."""

import asyncio
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest
from aio_pika.abc import AbstractConnection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from podium.migration import migrate_all
from services.cancellation import background_task
from services.settings import Settings
from services.storage.database import Sessions, make_engine
from tests.conftest import TestServers
from tests.integration.api.pods import running_pod
from tests.support.broker import Consumer, a_consumer, publish
from tests.support.databases import a_database
from tests.support.factories import a_body
from tests.support.invariants import assert_invariants
from tests.support.processes import ROOT, api_process, environment, program, worker_process
from tests.support.waiting import eventually, eventually_rows, rows

# The newest release, as its wheel. A new release replaces it.
PREVIOUS = ROOT / "tests" / "releases" / "podium-0.1.0-py3-none-any.whl"
SLOWEST_SECONDS = 3.0


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `python -m podium` is the previous release."""
    folder = tmp_path_factory.mktemp("previous")
    with zipfile.ZipFile(PREVIOUS) as wheel:
        wheel.extractall(folder)
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


@pytest.fixture
async def old_settings(servers: TestServers, settings: Settings) -> AsyncIterator[Settings]:
    """Settings that point to an empty database."""
    async with a_database(servers.database_url) as url:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        yield settings.model_copy(update={"database_url": type(settings.database_url)(address)})


# Rows enough that rewriting a table, or building an index under a lock, would be felt.
FILL = (
    """
INSERT INTO agents (name) SELECT 'filler-' || n FROM generate_series(1, 500) n
""",
    """
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at)
SELECT name || '.v' || n, id, 'Failed', now(), now()
FROM agents, generate_series(1, 40) n WHERE name LIKE 'filler-%'
""",
)


async def migrate_with(settings: Settings, release: dict[str, str], folder: Path) -> None:
    """Run `podium migrate` of a release as a process."""
    log = folder / "migrate.log"
    async with program("podium migrate", environment(settings, **release), log) as process:
        assert await process.ended() == 0, log.read_text()


@dataclass
class Traffic:
    """Callers, pods and an operator at work, and what they have met."""

    url: str
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    async def call(self, client: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
        """Send a request and count its answer."""
        began = monotonic()
        async with client.request(method, f"{self.url}{path}", json=body) as answer:
            found = await answer.json(content_type=None)
        self.slowest = max(self.slowest, monotonic() - began)
        self.statuses[f"{method} {path.rpartition('/')[2]} {answer.status}"] += 1
        return found

    async def run(self, agent_id: str, pod: str) -> None:
        """Call, promote and register until cancelled."""
        async with aiohttp.ClientSession() as client:
            for number in count():
                await self.call(client, "POST", f"/agents/{agent_id}/rpc", {"jsonrpc": "2.0", "id": 1, "method": "m"})
                await self.call(client, "POST", f"/agents/{agent_id}/deployments/v{1 + number % 2}/promote")
                body = a_body(f"new-{number}", deployment_id=f"new-{number}.v1", acp_url=pod)
                await self.call(client, "POST", "/agents/register", body)


@asynccontextmanager
async def a_reader(engine: AsyncEngine, seconds: float) -> AsyncIterator[None]:
    """A transaction that reads every table and then stays open for some seconds: it blocks every ALTER TABLE."""

    async def read() -> None:
        async with engine.connect() as connection:
            for table in ("agents", "deployments", "outbox", "registrations", "mcp_sessions"):
                await connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1"))
            reading.set()
            await asyncio.sleep(seconds)

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    yield
    await task


async def test_the_previous_release_works_while_and_after_the_schema_is_migrated(
    broker: AbstractConnection, old_settings: Settings, previous: dict[str, str], tmp_path: Path
) -> None:
    """No call, promote or announcement fails or waits long; a second `podium migrate` waits for the first (G46)."""
    consumer = await a_consumer(broker)
    await migrate_with(old_settings, previous, tmp_path)
    engine = make_engine(old_settings, application_name="tests")
    async with engine.begin() as connection:
        for statement in FILL:
            await connection.execute(text(statement))
    async with (
        running_pod() as pod,
        worker_process(old_settings, tmp_path, **previous),
        api_process(old_settings, tmp_path, **previous) as url,
        aiohttp.ClientSession() as client,
    ):
        traffic = Traffic(url)
        for version in ("v1", "v2"):
            agent = await traffic.call(
                client, "POST", "/agents/register", a_body("bot", deployment_id=version, acp_url=pod.url)
            )
        async with background_task(traffic.run(agent["id"], pod.url), name="traffic") as running:
            said: list[str] = []
            async with a_reader(engine, seconds=2.5):
                await asyncio.gather(*(migrate_all(old_settings, said.append) for _ in range(2)))
            migrated = traffic.statuses.total()
            await eventually(lambda: _more(traffic, migrated + 100, running), "the previous release goes on")
        assert not running.done() or running.cancelled(), running
        assert [each for each in traffic.statuses if not each.endswith(" 200")] == []
        assert traffic.slowest < SLOWEST_SECONDS
        assert any("Another process is migrating" in each for each in said)
        assert sum("Schema migrated" in each for each in said) == 1

        await publish(broker, a_body("queued", deployment_id="queued.v1", acp_url=pod.url))
        await eventually_rows(Sessions(engine), "SELECT 1 FROM deployments WHERE id = 'queued.v1' AND is_production")
        promoted = await rows(Sessions(engine), "SELECT event_seq FROM agents WHERE name = 'bot'")
        await eventually(lambda: _has(consumer, agent["id"], promoted[0].event_seq), "every event is published")

    async with (
        running_pod() as pod,
        worker_process(old_settings, tmp_path),
        api_process(old_settings, tmp_path) as url,
        aiohttp.ClientSession() as client,
    ):
        traffic = Traffic(url)
        await traffic.call(client, "POST", "/agents/register", a_body("bot", deployment_id="v3", acp_url=pod.url))
        await traffic.call(client, "POST", f"/agents/{agent['id']}/deployments/v3/promote")
        await traffic.call(client, "POST", f"/agents/{agent['id']}/rpc", {"jsonrpc": "2.0", "id": 1, "method": "m"})
        assert [each for each in traffic.statuses if not each.endswith(" 200")] == []
        (row,) = await rows(Sessions(engine), "SELECT event_seq FROM agents WHERE name = 'bot'")
        await eventually(lambda: _has(consumer, agent["id"], row.event_seq), "every event is published")
    sequences = [int(event.sequence) for event in consumer.once() if event.agentname == "bot"]
    # Without gaps; the janitor may have drained a version since.
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) >= row.event_seq
    async with Sessions(engine)() as session:
        await session.execute(text("DELETE FROM deployments WHERE id LIKE 'filler-%'"))
        await session.execute(text("DELETE FROM agents WHERE name LIKE 'filler-%'"))
        await assert_invariants(session)
    await engine.dispose()


async def _more(traffic: Traffic, than: int, running: "asyncio.Task[None]") -> bool:
    assert not running.done(), running
    return traffic.statuses.total() > than


async def _has(consumer: Consumer, agent_id: str, sequence: int) -> bool:
    return any(agent_id in event.source and int(event.sequence) >= sequence for event in consumer.events)
