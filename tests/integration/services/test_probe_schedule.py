"""The schedule of probes: a narrow table that follows the deployments, and gives production the first places."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from services.domain.health_policy import ProbeResult, ProbeTarget
from services.health.answered_calls import AnsweredCalls, open_answered_calls, store_answered
from services.health.janitors import JanitorReport, living_janitors, report_janitor, retire_janitor
from services.health.probes import claim, give_verdict
from services.settings import Settings
from tests.integration.services.world import World
from tests.support.factories import incoming
from tests.support.waiting import eventually_rows

SETTINGS = Settings(probe_interval=timedelta(minutes=1))
REFUSED = "cannot connect (Connection refused)"
ONE, TWO = (UUID(int=number) for number in (1, 2))
_VERSIONS = text("SELECT id, xmin::text, ctid::text FROM deployments ORDER BY id")
_ALL_DUE = text("UPDATE probes SET due_at = clock_timestamp()")


async def fetched(world: World, query: str) -> list[Any]:
    """The rows of a query."""
    return await world.do(lambda session: _rows(session, query))


async def _rows(session: Any, query: str) -> list[Any]:
    return list(await session.execute(text(query)))


async def claimed(world: World, limit: int = 100, **options: Any) -> list[ProbeTarget]:
    """Claim what is due."""
    return await world.do(lambda session: claim(session, SETTINGS, limit, **options))


async def fail_probes(world: World, janitor_id: UUID = ONE, deployment_id: str = "v1") -> None:
    """Have every deployment due, and fail the probe of this one."""
    await world.do(lambda session: session.execute(_ALL_DUE))
    for target in await claimed(world, janitor_id=janitor_id):
        if target.id == deployment_id:
            result = ProbeResult(target, REFUSED, janitor_id)
            await world.do(lambda session, result=result: give_verdict(session, result))  # type: ignore[misc]


async def test_probes_write_no_row_of_deployments(world: World) -> None:
    """Neither claims nor results do, until a result changes a status."""
    await world.register(*(incoming(deployment_id=f"v{number}") for number in range(1, 4)))
    before = await fetched(world, _VERSIONS.text)
    for _ in range(2):
        await fail_probes(world)
    assert await fetched(world, "SELECT streak FROM probes WHERE deployment_id = 'v1'") == [(-2,)]
    assert await fetched(world, _VERSIONS.text) == before
    await fail_probes(world)
    assert [old == new for old, new in zip(before, await fetched(world, _VERSIONS.text), strict=True)] == [
        False,
        True,
        True,
    ]


async def test_a_claim_removes_what_is_not_probed_and_an_announcement_brings_it_back(world: World) -> None:
    """Deployments without an address are not in the schedule; deleted ones leave it with the next claim."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="gone"))
    await world.create(id="later")
    assert await fetched(world, "SELECT deployment_id FROM probes ORDER BY 1") == [("gone",), ("v1",)]
    await world.delete("gone")
    assert [each.id for each in await claimed(world)] == ["v1"]
    assert await fetched(world, "SELECT deployment_id FROM probes") == [("v1",)]
    await world.arrive(deployment_id="later")
    assert [each.id for each in await claimed(world)] == ["later"]


async def test_production_is_claimed_first_and_previews_only_as_many_as_allowed(world: World) -> None:
    """From the moment of its promotion, although the previews have been due for longer."""
    await world.register(*(incoming(deployment_id=f"v{number}") for number in range(1, 6)))
    await world.do(lambda session: session.execute(text("UPDATE probes SET due_at = now() - interval '1 hour'")))
    await world.promote("v4")
    await world.do(lambda session: session.execute(text("UPDATE probes SET due_at = now() WHERE deployment_id = 'v4'")))
    # The former production keeps its place until its next claim.
    assert {each.id for each in await claimed(world, 2, previews=0)} == {"v1", "v4"}
    assert len(await claimed(world, 100, previews=2)) == 2
    await world.do(lambda session: session.execute(_ALL_DUE))
    assert [each.id for each in await claimed(world, 3, previews=0)] == ["v4"]
    assert len(await claimed(world)) == 4


async def test_the_schedule_follows_registrars_of_the_previous_release(world: World) -> None:
    """They write the columns of `deployments`: a restart of the streak, and a probe at once."""
    await world.register(incoming(deployment_id="v1"))
    await fail_probes(world)
    assert await claimed(world) == []
    announced = """
        UPDATE deployments SET registered_message_id = gen_random_uuid(), registered_at = now(),
            probe_due_at = clock_timestamp(), probe_streak = 0 WHERE id = 'v1'"""
    await world.do(lambda session: session.execute(text(announced)))
    assert [(each.id, each.streak) for each in await claimed(world)] == [("v1", 0)]
    # Its janitors only move the time.
    await world.do(lambda session: session.execute(text("UPDATE deployments SET probe_due_at = clock_timestamp()")))
    assert await claimed(world) == []


def a_report(janitor_id: UUID, **fields: Any) -> JanitorReport:
    """The report of a janitor that is well."""
    well = {"panic_since": None, "probed": 1, "failing": 0, "unknown": 0, "unknown_reason": None}
    return JanitorReport(id=janitor_id, name="host:1", **{**well, **fields})


async def test_production_is_due_at_once_for_the_second_janitor(world: World) -> None:
    """The first one does not get it again meanwhile; the result of the second one is decisive."""
    for janitor_id in (ONE, TWO):
        await world.do(lambda session, janitor_id=janitor_id: report_janitor(session, a_report(janitor_id)))  # type: ignore[misc]
    await world.register(incoming(deployment_id="v1"))
    for _ in range(3):
        await fail_probes(world, ONE)
    assert (await world.deployment("v1")).status == "Ready"
    assert await claimed(world, janitor_id=ONE) == []
    [target] = await claimed(world, janitor_id=TWO)
    await world.do(lambda session: give_verdict(session, ProbeResult(target, REFUSED, TWO)))
    assert (await world.deployment("v1")).status == "Failed"


async def test_a_janitor_that_is_gone_or_in_panic_is_not_waited_for(world: World) -> None:
    """Its report is gone or old, or says that it does not trust its own probes."""
    now = (await fetched(world, "SELECT now()"))[0][0]
    for number, silence in enumerate(("stopped", "silent", "in panic")):
        name = f"bot-{number}"
        for janitor_id in (ONE, TWO):
            await world.do(lambda session, janitor_id=janitor_id: report_janitor(session, a_report(janitor_id)))  # type: ignore[misc]
        if silence == "stopped":
            await world.do(lambda session: retire_janitor(session, TWO))
        elif silence == "silent":
            old = text("UPDATE janitors SET seen_at = now() - interval '16 seconds' WHERE id = :id")
            await world.do(lambda session, old=old: session.execute(old, {"id": TWO}))  # type: ignore[misc]
        else:
            report = a_report(TWO, panic_since=now)
            await world.do(lambda session, report=report: report_janitor(session, report))  # type: ignore[misc]
        await world.register(incoming(name, deployment_id=name))
        for _ in range(3):
            await fail_probes(world, ONE, name)
        assert (await world.deployment(name)).status == "Failed", silence


async def test_janitors_that_ended_without_notice_are_forgotten(world: World) -> None:
    """After an hour; before that they are not listed."""
    await world.do(lambda session: report_janitor(session, a_report(ONE)))
    await world.do(lambda session: session.execute(text("UPDATE janitors SET seen_at = now() - interval '2 hours'")))
    assert await world.do(living_janitors) == []
    await world.do(lambda session: report_janitor(session, a_report(TWO, failing=1)))
    assert await world.do(living_janitors) == [a_report(TWO, failing=1)]
    assert await fetched(world, "SELECT id FROM janitors") == [(TWO,)]


async def test_an_answered_call_is_stored_only_for_a_deployment_whose_probes_fail(world: World) -> None:
    """And keeps it Ready; server errors, and answers from before the first failed probe, do not."""
    await world.register(*(incoming(deployment_id=name) for name in ("v1", "v2")))
    calls = AnsweredCalls()
    stored = "SELECT deployment_id FROM probes WHERE last_call_at IS NOT NULL"

    async def store(deployment_id: str, status: int = 200, age: float = 0.0) -> None:
        calls.record(deployment_id, "", status)
        ages = dict.fromkeys(calls.take(), age)
        await world.do(lambda session: store_answered(session, ages))

    for name in ("v1", "v2"):
        await store(name)
    assert await fetched(world, stored) == []
    await fail_probes(world)
    await store("v1", status=500)
    assert await fetched(world, stored) == []
    await store("v1", age=60)
    await fail_probes(world)
    await store("v1")
    await store("v2")
    assert await fetched(world, stored) == [("v1",)]
    for status in ("Ready", "Ready", "Failed"):
        await fail_probes(world)
        assert (await world.deployment("v1")).status == status


async def test_an_answered_call_outlives_a_lock_on_its_row(world: World) -> None:
    """Verdicts and claims lock it for a moment. One call a minute may be all that shows that a production lives."""
    await world.register(*(incoming(deployment_id=name) for name in ("v1", "v2")))
    for name in ("v1", "v2"):
        await fail_probes(world, deployment_id=name)
    stored = "SELECT deployment_id FROM probes WHERE last_call_at IS NOT NULL ORDER BY deployment_id"
    async with open_answered_calls(world.sessions) as calls:
        async with world.uncommitted() as verdict:
            await verdict.execute(text("SELECT FROM probes WHERE deployment_id = 'v1' FOR UPDATE"))
            for name in ("v1", "v2"):
                calls.record(name, "", 200)
            assert await eventually_rows(world.sessions, stored) == [("v2",)]
        assert await eventually_rows(world.sessions, stored, 2) == [("v1",), ("v2",)]
