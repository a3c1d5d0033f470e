"""MCP sessions: which deployment has each one, for how long, and that sessions of different agents are separate."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from services.retention.tasks import RetentionTask, sweep
from services.routing.conversations import digest_of, end_session, keep_session, remove_unseen, session_seen
from services.settings import Settings
from tests.integration.services.world import NAME, World

V1, V2 = f"{NAME}.v1", f"{NAME}.v2"
ONE, TWO = digest_of(b"one"), digest_of(b"two")

_AGED = text("UPDATE conversations SET last_seen_at = clock_timestamp() - CAST(:age AS interval)")


async def keep(world: World, deployment_id: str, digest: bytes = ONE, name: str = NAME) -> None:
    """A deployment has issued this session."""
    agent_id = await world.agent_id(name)
    await world.do(lambda session: keep_session(session, agent_id, digest, deployment_id))


async def kept(world: World) -> dict[tuple[str, bytes], str]:
    """The deployment of each session, by the agent's name and the digest."""
    query = text("SELECT a.name, s.* FROM conversations AS s JOIN agents AS a ON a.id = s.agent_id")
    found = await world.do(lambda session: session.execute(query))
    return {(row.name, row.key_sha256): row.deployment_id for row in found}


async def last_seen(world: World) -> datetime:
    """`last_seen_at` of the session that was seen last."""
    found = await world.do(lambda session: session.scalar(text("SELECT max(last_seen_at) FROM conversations")))
    assert isinstance(found, datetime)
    return found


async def aged(world: World, age: timedelta) -> datetime:
    """Set the time at which all sessions were last seen."""
    await world.do(lambda session: session.execute(_AGED, {"age": age}))
    return await last_seen(world)


async def test_a_session_stays_with_the_deployment_that_issued_it_first(world: World) -> None:
    """Another deployment that returns the same id does not get it while the first one is Ready; after that it does."""
    await world.two_versions()
    await keep(world, V1)
    await world.promote(V2)
    await keep(world, V2)
    await keep(world, V2, TWO)
    assert await kept(world) == {(NAME, ONE): V1, (NAME, TWO): V2}
    await world.fail(V1)
    await keep(world, V2)
    assert await kept(world) == {(NAME, ONE): V2, (NAME, TWO): V2}
    await world.arrive(deployment_id="v3")
    await world.promote("v3")
    await world.delete(V2, force=True)
    await keep(world, "v3")
    assert await kept(world) == {(NAME, ONE): "v3", (NAME, TWO): V2}


async def test_ids_count_within_their_agent(world: World) -> None:
    """Two agents may issue the same id; ending one session leaves the other."""
    await world.arrive("a", deployment_id="a1")
    await world.arrive("b", deployment_id="b1")
    await keep(world, "a1", name="a")
    await keep(world, "b1", name="b")
    assert await kept(world) == {("a", ONE): "a1", ("b", ONE): "b1"}
    agent_id = await world.agent_id("a")
    for _ in range(2):
        await world.do(lambda session: end_session(session, agent_id, ONE))
    assert await kept(world) == {("b", ONE): "b1"}


async def test_only_a_digest_is_kept(world: World) -> None:
    """A reader of the table cannot use the sessions."""
    await world.two_versions()
    await keep(world, V1, digest_of(b"a secret id"))
    found = await world.do(lambda session: session.scalar(text("SELECT conversations::text FROM conversations")))
    assert b"a secret id".hex() not in found
    assert "a secret id" not in found


async def test_unused_sessions_are_removed(world: World, settings: Settings) -> None:
    """A limited number at a time, the oldest first; a call keeps a session, and is recorded once an hour."""
    await world.two_versions()
    agent_id = await world.agent_id()
    await keep(world, V1)
    await aged(world, timedelta(days=8))
    await world.promote(V2)
    await keep(world, V2, TWO)
    nothing = await world.do(lambda session: remove_unseen(session, datetime.now(UTC) - timedelta(days=9), 10))
    assert nothing == 0
    swept = await world.do(lambda session: sweep(session, RetentionTask.UNSEEN_SESSIONS, settings))
    assert swept.rows == 1
    assert await kept(world) == {(NAME, TWO): V2}

    for minutes, again in ((59, False), (61, True)):
        before = await aged(world, timedelta(minutes=minutes))
        await world.do(lambda session: session_seen(session, agent_id, TWO))
        assert (await last_seen(world) > before) is again
