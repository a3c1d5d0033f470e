"""One server is away while the other works: what goes on, what waits, and that everything arrives afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp
import pytest_asyncio

from tests.chaos.alarm import memory_alarm
from tests.chaos.ground import Field
from tests.chaos.size import SIZE
from tests.chaos.traffic import all_events_in_order, pods_of, until_quiet
from tests.factories import a_body, incoming
from tests.processes import api_process
from tests.waiting import eventually, rows

ANSWER_SECONDS = 10


class Callers:
    """Asks an API, and remembers each answer's status and whether it came in time."""

    def __init__(self, url: str, web: aiohttp.ClientSession) -> None:
        self._url, self._web = url, web
        self.answers: list[int] = []

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body; a refusal for a time says when to come again."""
        async with asyncio.timeout(ANSWER_SECONDS), self._web.request(method, self._url + path, json=body) as response:
            self.answers.append(response.status)
            assert response.status != 500, await response.text()
            if response.status == 503 and path != "/health/ready":
                assert int(response.headers["retry-after"]) > 0
            return response.status, await response.json()

    async def promote_back_and_forth(self, agent: dict[str, Any]) -> None:
        """Two promotes and a read."""
        for deployment in ("v1", "v2"):
            await self.ask("POST", f"/agents/{agent['id']}/deployments/{deployment}/promote")
        await self.ask("GET", f"/agents/{agent['id']}")


@pytest_asyncio.fixture
async def callers(field: Field) -> AsyncIterator[Callers]:
    """Callers of an API beside a worker."""
    async with (
        field.worker(PODIUM_PUBLISH_TIMEOUT="2"),
        api_process(field.settings, field.folder) as url,
        aiohttp.ClientSession() as web,
    ):
        await field.until_told("relay.started")
        yield Callers(url, web)


@asynccontextmanager
async def broker_down(field: Field) -> AsyncIterator[None]:
    """RabbitMQ is not there while inside."""
    await field.ground.rabbitmq.stop()
    yield
    await field.ground.rabbitmq.start()


async def test_the_api_works_while_the_broker_takes_nothing(field: Field, callers: Callers) -> None:
    """During a memory alarm, and with no broker at all: reads and promotes are answered, events arrive after."""
    await field.ground.settled()
    for deployment in ("v1", "v2"):
        _, agent = await callers.ask("POST", "/agents/register", a_body("bot", deployment_id=deployment))
    async with memory_alarm(field.ground.rabbitmq):
        await _for(SIZE.alarm, callers, agent)
        assert await rows(field.sessions, "SELECT 1 FROM outbox WHERE published_at IS NULL")
    async with broker_down(field):
        await _for(SIZE.broker_down, callers, agent)
        _, readiness = await callers.ask("GET", "/health/ready")
        assert (readiness["parts"]["database"]["ok"], readiness["parts"]["broker"]["ok"]) == (True, False)
    assert set(callers.answers) == {200}
    (ledger,) = await rows(field.sessions, "SELECT generation FROM agents")
    await until_quiet(field, 2)
    events = await all_events_in_order(field)
    promoted = {event.generation for event in events if event.type == "podium.deployment.promoted.v1"}
    assert promoted == set(range(1, ledger.generation + 1))
    print(f"{len(callers.answers)} answers, all 200; {ledger.generation} generations told")  # noqa: T201 - figures


async def test_a_database_that_is_away_loses_nothing(field: Field, callers: Callers) -> None:
    """Messages wait, none is parked; the API answers 503 in time, and ready says which part is down."""
    _, agent = await callers.ask("POST", "/agents/register", a_body("bot", deployment_id="v1"))
    await callers.ask("POST", "/agents/register", a_body("bot", deployment_id="v2"))
    messages = [incoming(f"bot-{number}", deployment_id=f"v-{number}") for number in range(300)]
    async with pods_of(field) as pods:
        await pods.publish(messages[:100])
        await field.ground.postgres.kill()
        callers.answers.clear()
        await pods.publish(messages[100:200])
        await _for(SIZE.database_down, callers, agent)
        assert set(callers.answers) == {503}
        status, readiness = await callers.ask("GET", "/health/ready")
        assert (status, readiness["parts"]["database"]["ok"], readiness["parts"]["broker"]["ok"]) == (503, False, True)
        assert (await callers.ask("GET", "/health/live"))[0] == 200
        print(f"{len(callers.answers)} answers while the database was down")  # noqa: T201 - figures
        await field.ground.postgres.start()
        await pods.publish(messages[200:])
    await until_quiet(field, len(messages) + 2)
    assert not await rows(field.sessions, "SELECT 1 FROM parked")

    async def promoted() -> bool:
        return (await callers.ask("POST", f"/agents/{agent['id']}/deployments/v2/promote"))[0] == 200

    await eventually(promoted, "a promote after the outage")
    await until_quiet(field, len(messages) + 2)
    await all_events_in_order(field)


async def _for(seconds: float, callers: Callers, agent: dict[str, Any]) -> None:
    """Ask all the time."""
    until = monotonic() + seconds
    while monotonic() < until:
        await callers.promote_back_and_forth(agent)
        await asyncio.sleep(0.02)
