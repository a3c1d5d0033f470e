"""G88: promotes that share a commit write what they would write one by one under the lock, or nothing."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches import impatient
from services.agents.queries import DeploymentView, get_deployment
from services.domain.caller import Caller
from services.domain.state import AgentSnapshot
from services.errors import (
    AgentDeletedError,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentNotReady,
    GenerationMismatch,
    PodiumError,
    Unavailable,
)
from services.promotion.history import PERIODS_SHOWN
from services.promotion.promote import promote
from services.promotion.together import CutoversTogether, Promote, Promoted
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.services.test_draining import begin
from tests.integration.services.world import NAME, World, settled
from tests.support.databases import empty
from tests.support.factories import an_id, incoming
from tests.support.instances import Instances
from tests.support.plans import explained

# Each table with its order; ids of agents differ between two runs.
TABLES = {
    "agents": "name",
    "deployments": "id",
    "instances": "deployment_id, instance_id",
    "promotions": "at",
    "outbox": "agent_name, sequence",
    "probes": "deployment_id, instance_id",
    "conversations": "key_sha256",
}
# What a sequence or a transaction id gives; and defaults from the clock: two of one statement can be equal.
INCIDENTAL = {
    "agents": {"created_at"},
    "deployments": {"probe_due_at"},
    "outbox": {"id", "xid", "created_at"},
    "probes": {"due_at"},
    "conversations": {"last_seen_at", "started_at"},
}
UUID_PATTERN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'together'")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Way = Callable[[str, str, Caller], Awaitable[object]]


@asynccontextmanager
async def opened(settings: Settings, events: list[None] | None = None) -> AsyncIterator[CutoversTogether]:
    """Promotes on a connection of their own; each commit with events adds to `events`."""
    noted: list[None] = [] if events is None else events
    together = CutoversTogether(impatient(settings), application_name="together", on_events=lambda: noted.append(None))
    yield together
    together.close()


@pytest_asyncio.fixture
async def together(settings: Settings) -> AsyncIterator[CutoversTogether]:
    """Promotes on a connection of their own."""
    async with opened(settings) as together:
        yield together


async def request(world: World, deployment_id: str, name: str = NAME, **caller: Any) -> Promote:
    """A promote of this agent's deployment."""
    return Promote(await world.agent_id(name), deployment_id, Caller(**{"actor": "amy", **caller}))


async def pictured(world: World) -> dict[str, list[Any]]:
    """All rows of all tables; ids are replaced by numbers, and times by their rank."""
    found: dict[str, list[Any]] = {}
    for table, order in TABLES.items():
        query = text(f"SELECT to_jsonb(t) FROM {table} t ORDER BY {order}")
        rows = await world.do(lambda session, query=query: session.scalars(query))  # type: ignore[misc]
        found[table] = [
            {name: value for name, value in row.items() if name not in INCIDENTAL.get(table, set())} for row in rows
        ]
    ids: dict[str, str] = {}
    times = sorted({_normal(each) for each in _strings(found) if TIME_PATTERN.fullmatch(each)})
    return _replaced(found, ids, {each: f"time {rank}" for rank, each in enumerate(times)})  # type: ignore[no-any-return]


def _normal(moment: str) -> str:
    whole, _, rest = moment.removesuffix("Z").removesuffix("+00:00").partition(".")
    return f"{whole}.{rest:0<6}"


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [each for item in value for each in _strings(item)]
    return [value] if isinstance(value, str) else []


def _replaced(value: Any, ids: dict[str, str], times: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(item, ids, times) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, ids, times) for item in value]
    if isinstance(value, str) and UUID_PATTERN.fullmatch(value):
        return ids.setdefault(value, f"id {len(ids)}")
    if isinstance(value, str) and TIME_PATTERN.fullmatch(value):
        return times[_normal(value)]
    return value


async def history(world: World, way: Way) -> list[object]:
    """Promotes of all kinds, each in this way, between other changes; returns what the callers got."""
    await world.arrive(acp_url="http://legacy:1", description="Answers.", docker_image="bot:legacy")
    for number in range(1, 5):
        await world.arrive(deployment_id=f"v{number}", acp_url=f"http://v{number}:1", docker_image=f"bot:{number}")
    await world.arrive(deployment_id="gone")
    await world.delete("gone")
    await world.create(id="pending")
    await world.arrive("other", deployment_id="foreign")
    await world.arrive("other", deployment_id="foreign.2")
    got: list[object] = [
        await way(NAME, "v1", Caller(actor="amy", reason="It works.", if_generation=1, traceparent=TRACEPARENT)),
        await way(NAME, "v2", Caller(actor="bob", if_generation=2)),
        await way(NAME, "v3", Caller(actor="bob", if_generation=2)),
        *[await way(NAME, id_, Caller(actor="bob")) for id_ in ("gone", "pending", "foreign", "nowhere")],
        await way(NAME, "pending", Caller(actor="bob", if_generation=9)),
    ]
    await begin(world, b"first", "v2")
    got += [await way(NAME, "v3", Caller(actor="amy")), await way("other", "foreign.2", Caller(actor="amy"))]
    await world.roll_back()
    got.append(await way(NAME, "v2", Caller(actor="amy", if_generation=77)))
    await world.fail("v2")
    got += [await way(NAME, "v1", Caller(actor="amy")), await way(NAME, "v2", Caller(actor="amy"))]
    await Instances(world.sessions).add("v4", {"a": "http://a:1", "b": "http://b:1"})
    got += [await way(NAME, "v4", Caller(actor="amy")), await way(NAME, "v1", Caller(actor="amy"))]
    for _ in range(6):
        got += [await way(NAME, "v3", Caller(actor="amy")), await way(NAME, "v1", Caller(actor="amy"))]
    await world.delete_agent("other")
    got.append(await way("other", "foreign", Caller(actor="amy")))
    return got


async def test_they_write_the_rows_of_promotes_under_the_lock(
    world: World, together: CutoversTogether, engine: AsyncEngine
) -> None:
    """G88: column by column in every table, after the same changes; and callers get the same answers and errors."""

    async def under_the_lock(name: str, deployment_id: str, caller: Caller) -> object:
        agent_id = await world.agent_id(name)

        async def work(session: Any) -> tuple[AgentSnapshot, DeploymentView]:
            return await promote(session, agent_id, deployment_id, caller), await get_deployment(
                session, agent_id, deployment_id
            )

        found = await settled(world.do(work))
        return type(found) if isinstance(found, PodiumError) else _answered(found[0], found[1])

    async def with_others(name: str, deployment_id: str, caller: Caller) -> object:
        [made] = await together.make([Promote(await world.agent_id(name), deployment_id, caller)])
        assert made is not None
        if isinstance(made, PodiumError):
            return type(made)
        assert isinstance(made, Promoted)
        view = DeploymentView(made.deployment, made.periods, made.state.agent.generation)
        stored = await world.do(lambda session: get_deployment(session, made.state.agent.id, deployment_id))
        assert (view.deployment, view.production_periods) == (stored.deployment, stored.production_periods)
        return _answered(made.state, view)

    expected = await history(world, under_the_lock), await pictured(world)
    await empty(engine)
    found = await history(world, with_others), await pictured(world)
    assert found[0] == expected[0]
    assert {*found[0]} >= {
        AgentDeletedError,
        DeploymentDeletedError,
        DeploymentNotFound,
        DeploymentNotReady,
        GenerationMismatch,
    }
    for table in TABLES:
        assert found[1][table], table
        for row, other in zip(found[1][table], expected[1][table], strict=True):
            assert row == other, table


def _answered(state: AgentSnapshot, view: DeploymentView) -> object:
    agent, deployment = state.agent, view.deployment
    return (
        (agent.generation, agent.event_seq, agent.status, agent.production_deployment_id, agent.auto_promote_paused),
        (deployment.id, deployment.is_production, deployment.status, deployment.draining_since, view.generation),
        tuple((period.generation, period.until is None) for period in view.production_periods),
    )


async def test_several_of_one_agent_keep_their_order_and_conditions(world: World, together: CutoversTogether) -> None:
    """G88: each is decided on what the one before it left; each change has its ledger row and event."""
    for number in range(1, 4):
        await world.arrive(deployment_id=f"v{number}")
    await begin(world, b"first", "v1")
    made = await together.make(
        [
            await request(world, "v2", if_generation=1, reason="first"),
            await request(world, "v3", if_generation=1),
            await request(world, "v3", if_generation=2, reason="third"),
            await request(world, "v3", if_generation=1),
            await request(world, "v1", if_generation=3),
            await request(world, "v2", if_generation=4),
        ]
    )
    assert [each.state.agent.generation if isinstance(each, Promoted) else type(each) for each in made] == [
        2,
        GenerationMismatch,
        3,
        3,
        4,
        5,
    ]
    assert await world.causes() == [("first", "v1"), *(("manual", each) for each in ("v2", "v3", "v1", "v2"))]
    assert [row.reason for row in await world.ledger()][1:3] == ["first", "third"]
    draining = {each.id: each.draining_since is not None for each in await world.deployments()}
    assert draining == {"v1": True, "v2": False, "v3": True}
    stored = await world.do(lambda session: get_deployment(session, made[0].state.agent.id, "v2"))  # type: ignore[union-attr]
    last = made[-1]
    assert isinstance(last, Promoted)
    assert (last.deployment, last.periods) == (stored.deployment, stored.production_periods)


CHANGES: dict[str, Callable[[World], Awaitable[object]]] = {
    "another promote": lambda world: world.promote("v3"),
    "the target announces a new address": lambda world: world.arrive(deployment_id="v2", acp_url="http://new"),
    "production announces a new address": lambda world: world.arrive(deployment_id="v1", acp_url="http://new"),
    "the target fails": lambda world: world.fail("v2"),
    "production fails": lambda world: world.fail("v1"),
    "the target is deleted": lambda world: world.delete("v2"),
    "the agent is deleted": lambda world: world.delete_agent(),
    "a version appears": lambda world: world.arrive(deployment_id="v4"),
    "a legacy pod registers": lambda world: world.arrive(acp_url="http://legacy"),
    "the pause ends": lambda world: world.change(auto_promote_paused=False),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_nothing_is_written_if_something_has_changed(
    world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """G88: neither about the agent that another transaction changed after it was read, nor a refusal; others pass."""
    for number in range(1, 4):
        await world.arrive(deployment_id=f"v{number}")
    await world.two_versions("other")
    await world.do(lambda session: session.execute(text("UPDATE agents SET auto_promote_paused = true")))
    wanted = [
        await request(world, "v2"),
        await request(world, "other.v2", "other"),
        await request(world, "v2", if_generation=77),
    ]
    after: list[Any] = []
    fetch = together._connection.fetch

    async def late(number: int, *values: object) -> Any:
        if number == 1:
            await CHANGES[name](world)
            after.append(await about(world, NAME))
            values = in_time(values)
        return await fetch(number, *values)

    monkeypatch.setattr(together._connection, "fetch", late)
    made = await together.make(wanted)
    assert [type(each) for each in made] == [type(None), Promoted, type(None)]
    assert await about(world, NAME) == after[0]
    assert await world.production("other") == "other.v2"


def in_time(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The parameters of the write as if the read was just now, however slow the machine is."""
    agents = [{**each, "read_at": datetime.now(UTC).isoformat()} for each in json.loads(values[0])]
    return json.dumps(agents), *values[1:]


async def about(world: World, name: str) -> list[Any]:
    """All rows of an agent, with their versions."""
    agent_id = await world.agent_id(name)
    found: list[Any] = []
    for table, column in (
        ("agents", "id"),
        ("deployments", "agent_id"),
        ("promotions", "agent_id"),
        ("outbox", "agent_id"),
    ):
        query = text(f"SELECT t.xmin::text, to_jsonb(t) FROM {table} t WHERE {column} = :id ORDER BY 2")
        found += (await world.do(lambda session, query=query: session.execute(query, {"id": agent_id}))).all()  # type: ignore[misc]
    return found


LOCKS = {
    "the agent": "SELECT FROM agents WHERE name = 'support-bot' FOR NO KEY UPDATE",
    "the target, by a conversation": "SELECT FROM deployments WHERE id = 'support-bot.v2' FOR SHARE",
    "production, by a conversation": "SELECT FROM deployments WHERE id = 'support-bot.v1' FOR SHARE",
}


@pytest.mark.parametrize("name", LOCKS)
async def test_what_is_locked_is_left_at_once(world: World, together: CutoversTogether, name: str) -> None:
    """G88: without a wait; promotes of other agents pass."""
    await world.two_versions()
    await world.two_versions("other")
    wanted = [await request(world, f"{NAME}.v2"), await request(world, "other.v2", "other")]
    async with world.uncommitted() as session:
        await session.execute(text(LOCKS[name]))
        async with asyncio.timeout(2):
            made = await together.make(wanted)
    assert [type(each) for each in made] == [type(None), Promoted]
    assert (await world.production(), await world.production("other")) == (f"{NAME}.v1", "other.v2")


async def test_a_decision_is_not_written_late(
    world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G88: the time of a change in the ledger is never much earlier than the change."""
    await world.two_versions()
    wanted = await request(world, f"{NAME}.v2")
    fetch = together._connection.fetch

    async def late(number: int, *values: object) -> Any:
        if number == 1:
            await asyncio.sleep(0.6)
        return await fetch(number, *values)

    with monkeypatch.context() as patched:
        patched.setattr(together._connection, "fetch", late)
        assert await together.make([wanted]) == [None]
    assert [type(each) for each in await together.make([wanted])] == [Promoted]


async def test_agents_that_do_not_exist_are_left_to_the_locked_way(world: World, together: CutoversTogether) -> None:
    """It raises the error."""
    await world.two_versions()
    nobody = Promote(an_id(), "v1", Caller(actor="amy"))
    assert await together.make([nobody]) == [None]
    made = await together.make([nobody, await request(world, f"{NAME}.v2")])
    assert [type(each) for each in made] == [type(None), Promoted]


async def test_the_relay_is_woken_only_after_events(world: World, settings: Settings) -> None:
    """Once for each commit that wrote any."""
    await world.two_versions()
    events: list[None] = []
    async with opened(settings, events) as together:
        await together.make([await request(world, f"{NAME}.v1"), await request(world, "nowhere")])
        assert not events
        await together.make([await request(world, f"{NAME}.v2"), await request(world, f"{NAME}.v1")])
        assert len(events) == 1


async def test_a_lost_connection(world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle one is replaced; one lost after the change was sent is an error, since its outcome is unknown."""
    await world.two_versions()
    wanted = [await request(world, f"{NAME}.v2"), await request(world, f"{NAME}.v1")]
    for each in wanted:
        assert isinstance((await together.make([each]))[0], Promoted)
        await world.do(lambda session: session.execute(END))
    fetch = together._connection.fetch

    async def lost(number: int, *values: object) -> Any:
        if number == 1:
            await world.do(lambda session: session.execute(END))
        return await fetch(number, *values)

    with monkeypatch.context() as patched:
        patched.setattr(together._connection, "fetch", lost)
        with pytest.raises(Unavailable):
            await together.make(wanted)
    assert isinstance((await together.make(wanted))[0], Promoted)


async def test_a_database_that_does_not_respond(world: World, settings: Settings, sessions: Sessions) -> None:
    """`Unavailable` after the time limit; the next ones are made on a new connection."""
    await world.two_versions()
    wanted = [await request(world, f"{NAME}.v2")]
    short = settings.model_copy(update={"database_timeout": settings.database_timeout / 10})
    async with opened(short) as together:
        async with sessions() as session, session.begin():
            await session.execute(text("LOCK TABLE promotions IN ACCESS EXCLUSIVE MODE"))
            async with asyncio.timeout(short.database_timeout.total_seconds() + 2):
                with pytest.raises(Unavailable):
                    await together.make(wanted)
        assert isinstance((await together.make(wanted))[0], Promoted)


async def test_a_plan_from_an_empty_database_stays_right(filled: AsyncEngine) -> None:
    """G43: both statements are planned once, on empty tables; they look keys up in indexes all the same."""
    own = Settings(database_url=SecretStr(filled.url.render_as_string(hide_password=False)))
    world = World(Sessions(filled))
    async with opened(own) as together:
        assert await together.make([Promote(an_id(), "v1", Caller(actor="amy"))]) == [None]
        for number, parameters in enumerate(("'{}', '{}', '{}', '{}'", "'[]'")):
            plan = await explained(together._connection, number, parameters)
            assert "Seq Scan" not in plan
            assert "Hash Join" not in plan
            scans = re.findall(r"Index (?:Only )?Scan (?:Backward )?(?:using|on) \w+", plan)
            assert len(scans) == plan.count("Index Cond"), "an index is read from end to end"
        await world.two_versions()
        agent_id = await world.agent_id()
        for _ in range(40):
            wanted = [await request(world, f"{NAME}.v{version}") for version in (2, 1)]
            assert None not in await together.make(wanted * 20)
        parameters = f"'{{{agent_id}}}', '{{{NAME}.v2}}', '{{promote}}', '{{}}'"
        plan = await explained(together._connection, 0, parameters, "ANALYZE, TIMING false, COSTS false")
        assert max(int(rows) for rows in re.findall(r"actual rows=(\d+)", plan)) <= PERIODS_SHOWN, plan
        assert "Rows Removed" not in plan


async def plan_of_write(together: CutoversTogether, monkeypatch: pytest.MonkeyPatch, wanted: list[Promote]) -> str:
    """How PostgreSQL wrote this group."""
    plans: list[str] = []
    fetch = together._connection.fetch

    async def explaining(number: int, *values: str) -> list[Any]:
        if number != 1:
            return await fetch(number, *values)
        options = "ANALYZE, TIMING false, COSTS false"
        plans.append(await explained(together._connection, number, f"'{values[0]}'", options))
        return []

    monkeypatch.setattr(together._connection, "fetch", explaining)
    await together.make(wanted)
    [plan] = plans
    return plan


async def test_the_work_of_a_group_grows_with_its_changes(
    world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written about an agent is read once, not once for each agent of the group."""
    agents = 30
    for number in range(agents):
        await world.two_versions(f"bot-{number}")
    wanted = [await request(world, f"bot-{number}.v2", f"bot-{number}") for number in range(agents)]
    plan = await plan_of_write(together, monkeypatch, wanted)
    scans = re.findall(r"Function Scan .* \(actual rows=(\d+) loops=(\d+)\)", plan)
    assert max(int(rows) * int(times) for rows, times in scans) <= 4 * agents, plan


async def test_many_changes_of_one_agent_are_written_in_memory(
    world: World, together: CutoversTogether, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written about the agent is not copied for each of its deployments."""
    versions = [f"{NAME}.v{number}" for number in range(100)]
    await world.register(*(incoming(deployment_id=version) for version in versions))
    plan = await plan_of_write(together, monkeypatch, [await request(world, version) for version in versions[1:]])
    assert "Disk:" not in plan, plan
