"""Events that retention removed: only clients that have not read them get an error."""

from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import text

from services.events.log import remove_published
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.streams import listening
from tests.support.waiting import rows

_PUBLISH = text("UPDATE outbox SET published_at = clock_timestamp() - interval '8 days' WHERE sequence <= :sequence")
A_WEEK_AGO = timedelta(days=-7)


async def remove(sessions: Sessions, *, published_up_to: int, limit: int = 1000) -> int:
    """Date the publishing of events up to this sequence eight days back, and remove events older than a week."""
    async with sessions() as session, session.begin():
        await session.execute(_PUBLISH, {"sequence": published_up_to})
    before = datetime.now(UTC) + A_WEEK_AGO
    return (await in_transaction(sessions, partial(remove_published, before=before, limit=limit))).rows


async def test_only_a_cursor_before_removed_events_is_refused(api: Api, sessions: Sessions) -> None:
    """For one agent and for all events; all events after the mark can still be read."""
    agent = await api.register("bot", "v1")
    own = f"/agents/{agent['id']}/events"
    async with listening(api, "/events", since="oldest", follow="false") as before:
        await before.until_end()
    cursors = [block.fields["id"] for block in before.events]
    assert await remove(sessions, published_up_to=2) == 2
    for path, gone, left in [(own, ["0", "1"], ["2", "3"]), ("/events", ["0.0", cursors[0]], cursors[1:3])]:
        for cursor in gone:
            refused = await api.get(path, headers={"last-event-id": cursor})
            assert "cursor" in refused.problem(410, "events-removed")["detail"]
        for cursor, expected in zip(left, ([3, 4], [4]), strict=True):
            async with listening(api, path, cursor, follow="false") as listener:
                await listener.until_end()
            assert listener.sequences == expected
        async with listening(api, path, since="oldest", follow="false") as oldest:
            await oldest.until_end()
        assert oldest.sequences == [3, 4]


async def test_the_stream_of_an_agent_without_removed_events_is_not_affected(api: Api, sessions: Sessions) -> None:
    """Each agent has its own mark; the stream of all events uses the latest."""
    bot, other = await api.register("bot", "v1"), await api.register("other", "o1")
    async with sessions() as session, session.begin():
        await session.execute(text("UPDATE outbox SET published_at = now() - interval '8 days' WHERE subject = 'o1'"))
    before = datetime.now(UTC) + A_WEEK_AGO
    await in_transaction(sessions, partial(remove_published, before=before, limit=1000))
    async with listening(api, f"/agents/{bot['id']}/events", "0", follow="false") as listener:
        await listener.until_end()
    assert listener.sequences == [1, 2, 3, 4]
    (await api.get(f"/agents/{other['id']}/events", params={"since": "1"})).problem(410, "events-removed")
    (await api.get("/events", params={"since": "0.0"})).problem(410, "events-removed")


async def test_removal_works_in_batches_and_keeps_unpublished_events(api: Api, sessions: Sessions) -> None:
    """The oldest events go first, marks never decrease, and recent or unpublished events stay."""
    await api.register("bot", "v1")
    assert await remove(sessions, published_up_to=0) == 0
    assert await remove(sessions, published_up_to=3, limit=2) == 2
    assert [row.sequence for row in await rows(sessions, "SELECT sequence FROM outbox_low_water")] == [2]
    assert await remove(sessions, published_up_to=3, limit=2) == 1
    assert await remove(sessions, published_up_to=3, limit=2) == 0
    assert [row.sequence for row in await rows(sessions, "SELECT sequence FROM outbox_low_water")] == [3]
    assert [row.sequence for row in await rows(sessions, "SELECT sequence FROM outbox")] == [4]


async def test_marks_and_removal_commit_together(api: Api, sessions: Sessions) -> None:
    """No reader sees the mark without the removal, or the reverse."""
    agent = await api.register("bot", "v1")
    async with sessions() as session:
        await session.execute(_PUBLISH, {"sequence": 2})
        await remove_published(session, datetime.now(UTC) + A_WEEK_AGO, 1000)
        await session.rollback()
    async with listening(api, f"/agents/{agent['id']}/events", "0", follow="false") as listener:
        await listener.until_end()
    assert listener.sequences == [1, 2, 3, 4]


async def test_unpublished_events_of_one_agent_do_not_block_removal_of_others(api: Api, sessions: Sessions) -> None:
    """Unpublished events are skipped, however many of the oldest there are."""
    await api.register("waiting", "w1")
    await api.register("bot", "v1")
    async with sessions() as session, session.begin():
        old = "UPDATE outbox SET published_at = now() - interval '8 days' WHERE agent_name = 'bot'"
        await session.execute(text(old))
    before = datetime.now(UTC) + A_WEEK_AGO
    assert (await in_transaction(sessions, partial(remove_published, before=before, limit=3))).rows == 3
    assert {row.agent_name for row in await rows(sessions, "SELECT DISTINCT agent_name FROM outbox")} == {
        "waiting",
        "bot",
    }
