"""`podium doctor` with real servers, healthy and broken."""

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
    """A shell with all settings, and with strong secrets."""
    more = {
        "PODIUM_DATABASE_URL": settings.database_url.get_secret_value(),
        "PODIUM_SECRET_KEY": "0123456789abcdef0123456789abcdef",
    }
    return Terminal(terminal.folder, {**terminal.variables, **more})


async def findings(doctor: Terminal, **variables: str) -> list[dict[str, Any]]:
    """All findings that are not ok."""
    ran = await doctor.quick("doctor", "--json", **variables)
    assert ran.code == int(any(check["verdict"] == "failed" for check in ran.json)), ran
    return [check for check in ran.json if check["verdict"] != "ok"]


async def test_a_healthy_system_has_no_findings(
    doctor: Terminal, settings: Settings, broker: AbstractConnection, tmp_path: Path
) -> None:
    """Every line is ok, and the exit code is 0."""
    async with worker_process(settings, tmp_path, "registrar"):

        async def consumed() -> bool:
            channel = await broker.channel()
            queue = await channel.get_queue(topology.REGISTRATIONS_QUEUE)
            return bool(queue.declaration_result.consumer_count)

        await eventually(consumed, "a registrar consumes registrations")
        ran = await doctor.done("doctor")
    assert {line.split()[0] for line in ran.out.splitlines()} == {"ok"}
    assert {line.split()[1] for line in ran.out.splitlines()} == {"settings", "PostgreSQL", "RabbitMQ", "API"}


async def test_problems_of_the_broker_are_distinguished(doctor: Terminal, broker: AbstractConnection) -> None:
    """No consumer; a queue with other arguments; no queue, and the check does not declare it."""
    (no_consumer,) = await findings(doctor)
    assert (no_consumer["finding"], no_consumer["part"]) == ("no registrar consumes registrations", "RabbitMQ")
    other, _ = await findings(doctor, PODIUM_DELIVERY_LIMIT="7")
    assert "x-delivery-limit" in other["finding"]
    await (await broker.channel()).queue_delete(topology.REGISTRATIONS_QUEUE)
    for _ in range(2):
        (missing,) = await findings(doctor)
        assert missing["finding"] == f"the queue {topology.REGISTRATIONS_QUEUE} does not exist"
        assert "podium migrate" in missing["advice"]


@asynccontextmanager
async def reader(sessions: Sessions) -> AsyncIterator[tuple[str, str]]:
    """Name and password of a user who can only read."""
    name = f"reader_{uuid4().hex}"
    async with sessions() as session, session.begin():
        await session.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'"))
        await session.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"))
    yield name, name
    async with sessions() as session, session.begin():
        await session.execute(text(f"DROP OWNED BY {name}"))
        await session.execute(text(f"DROP ROLE {name}"))


async def test_problems_of_the_database_are_distinguished(doctor: Terminal, sessions: Sessions, api: Api) -> None:
    """No database; a user without the privilege to write; a read-only server."""
    url = doctor.variables["PODIUM_DATABASE_URL"]
    absent, *_ = await findings(doctor, PODIUM_DATABASE_URL=f"{url}_not_there")
    assert "does not exist" in absent["finding"]
    async with reader(sessions) as (user, password):
        theirs = make_url(url).set(username=user, password=password).render_as_string(hide_password=False)
        forbidden, *_ = await findings(doctor, PODIUM_DATABASE_URL=theirs)
    assert "may not write to agents, audit, call_counts, conversations" in forbidden["finding"]
    database = url.rpartition("/")[2]
    async with sessions() as session:
        connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await connection.exec_driver_sql(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    standby, *_ = await findings(doctor)
    assert "read-only transaction" in standby["finding"]
    assert await rows(sessions, "SELECT 1 FROM agents") == []
    assert (await api.get("/health/live")).status == 200


async def test_overdue_probes_are_a_warning(
    doctor: Terminal, settings: Settings, broker: AbstractConnection, sessions: Sessions, api: Api, tmp_path: Path
) -> None:
    """A probe that is overdue for minutes means that no janitor runs; a probe that has just become due is normal."""
    assert broker is not None
    async with worker_process(settings, tmp_path, "registrar relay"):
        for version in ("v1", "v2"):
            await api.register("bot", version)
        async with sessions() as session, session.begin():
            await session.execute(
                text("UPDATE probes SET due_at = now() - interval '3 minutes' WHERE deployment_id = 'v1'")
            )

        [unasked] = [each for each in await findings(doctor) if "janitor" in each["advice"]]
    assert unasked["finding"].startswith("1 deployment is overdue for a probe, the oldest for 3m")
    assert unasked["verdict"] == "warning"


async def test_a_janitor_in_panic_is_a_failure(
    doctor: Terminal, broker: AbstractConnection, sessions: Sessions, api: Api
) -> None:
    """`podium doctor` fails, and readiness names the janitor but stays: nothing is wrong with the API."""
    assert broker is not None
    assert (await api.get("/health/ready")).json["parts"]["janitors"] == {"ok": True, "detail": None}
    async with sessions() as session, session.begin():
        await session.execute(
            text(
                "INSERT INTO janitors (id, name, panic_since, probed, failing, unknown, unknown_reason)"
                " VALUES (gen_random_uuid(), 'host:7', '2026-01-01T00:00:00Z', 30, 29, 2, 'may not be dialled')"
            )
        )
    found = await findings(doctor)
    [panic] = [each for each in found if each["finding"].startswith("janitor host:7 sets")]
    assert panic["verdict"] == "failed"
    assert panic["finding"] == (
        "janitor host:7 sets no deployment Failed since 2026-01-01T00:00:00+00:00: "
        "its probes of 29 of 30 deployments fail"
    )
    [reported] = [each for each in found if f"reports: {panic['finding']}" in each["finding"]]
    assert (reported["part"], reported["verdict"]) == ("API", "failed")
    [unknown] = [each for each in found if "cannot probe" in each["finding"]]
    assert unknown["finding"] == "janitor host:7 cannot probe 2 deployments: may not be dialled"
    assert unknown["verdict"] == "warning"
    ready = await api.get("/health/ready")
    assert (ready.status, ready.json["parts"]["janitors"]) == (200, {"ok": False, "detail": panic["finding"]})
