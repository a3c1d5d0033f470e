"""`podium doctor` against real servers, well and unwell."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractConnection
from sqlalchemy import text
from sqlalchemy.engine import make_url

from contracts import topology
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.cli.terminal import Terminal
from tests.support.processes import worker_process
from tests.support.waiting import eventually, rows


@pytest.fixture
def doctor(terminal: Terminal, settings: Settings) -> Terminal:
    """A shell with all settings, strong secrets among them."""
    more = {
        "PODIUM_DATABASE_URL": settings.database_url.get_secret_value(),
        "PODIUM_SECRET_KEY": "0123456789abcdef0123456789abcdef",
    }
    return Terminal(terminal.folder, {**terminal.variables, **more})


async def findings(doctor: Terminal, **variables: str) -> list[dict[str, Any]]:
    """Everything that is not well."""
    ran = await doctor.quick("doctor", "--json", **variables)
    assert ran.code == int(any(check["verdict"] == "failed" for check in ran.json)), ran
    return [check for check in ran.json if check["verdict"] != "ok"]


async def test_a_system_that_works_has_nothing_against_it(
    doctor: Terminal, settings: Settings, broker: AbstractConnection, tmp_path: Path
) -> None:
    """Every line is ok, and the exit code says so."""
    async with worker_process(settings, tmp_path, "registrar"):

        async def taken() -> bool:
            channel = await broker.channel()
            queue = await channel.get_queue(topology.REGISTRATIONS_QUEUE)
            return bool(queue.declaration_result.consumer_count)

        await eventually(taken, "a registrar takes registrations")
        ran = await doctor.done("doctor")
    assert {line.split()[0] for line in ran.out.splitlines()} == {"ok"}
    assert {line.split()[1] for line in ran.out.splitlines()} == {"settings", "PostgreSQL", "RabbitMQ", "API"}


async def test_what_is_wrong_with_the_broker_is_told_apart(doctor: Terminal, broker: AbstractConnection) -> None:
    """Nobody takes registrations; a queue of another shape; no queue at all, which is not made by looking."""
    (nobody,) = await findings(doctor)
    assert (nobody["finding"], nobody["part"]) == ("nobody takes registrations", "RabbitMQ")
    other, _ = await findings(doctor, PODIUM_DELIVERY_LIMIT="7")
    assert "x-delivery-limit" in other["finding"]
    await (await broker.channel()).queue_delete(topology.REGISTRATIONS_QUEUE)
    for _ in range(2):
        (missing,) = await findings(doctor)
        assert missing["finding"] == f"the queue {topology.REGISTRATIONS_QUEUE} is not there"
        assert "podium migrate" in missing["advice"]


@asynccontextmanager
async def reader(sessions: Sessions) -> AsyncIterator[tuple[str, str]]:
    """Name and password of a user who may only read."""
    name = f"reader_{uuid4().hex}"
    async with sessions() as session, session.begin():
        await session.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'"))
        await session.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"))
    yield name, name
    async with sessions() as session, session.begin():
        await session.execute(text(f"DROP OWNED BY {name}"))
        await session.execute(text(f"DROP ROLE {name}"))


async def test_what_is_wrong_with_the_database_is_told_apart(doctor: Terminal, sessions: Sessions, api: Api) -> None:
    """Not there; a user who may not write; a server that does not."""
    url = doctor.variables["PODIUM_DATABASE_URL"]
    absent, *_ = await findings(doctor, PODIUM_DATABASE_URL=f"{url}_not_there")
    assert "does not exist" in absent["finding"]
    async with reader(sessions) as (user, password):
        theirs = make_url(url).set(username=user, password=password).render_as_string(hide_password=False)
        forbidden, *_ = await findings(doctor, PODIUM_DATABASE_URL=theirs)
    assert "may not write to agents, deployments" in forbidden["finding"]
    database = url.rpartition("/")[2]
    async with sessions() as session:
        connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await connection.exec_driver_sql(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    standby, *_ = await findings(doctor)
    assert "read-only transaction" in standby["finding"]
    assert await rows(sessions, "SELECT 1 FROM agents") == []
    assert (await api.get("/health/live")).status == 200


async def test_deployments_that_nobody_asks_are_told_of(
    doctor: Terminal, settings: Settings, broker: AbstractConnection, sessions: Sessions, api: Api, tmp_path: Path
) -> None:
    """Due for minutes, they mean that no janitor runs; what has just become due means nothing."""
    assert broker is not None
    async with worker_process(settings, tmp_path, "registrar relay"):
        for version in ("v1", "v2"):
            await api.register("bot", version)
        async with sessions() as session, session.begin():
            await session.execute(
                text("UPDATE deployments SET probe_due_at = now() - interval '3 minutes' WHERE id = 'v1'")
            )

        [unasked] = [each for each in await findings(doctor) if "janitor" in each["advice"]]
    assert unasked["finding"].startswith("1 deployment waits for a probe, since 3m")
    assert unasked["verdict"] == "warning"
