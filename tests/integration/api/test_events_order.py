"""Streams lose no event and keep the order, despite slow transactions and reconnecting clients."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import count, cycle
from pathlib import Path

import aiohttp
from sqlalchemy import text

from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.streams import Block, Listener, listening, write_event
from tests.support.processes import api_process
from tests.support.waiting import eventually, rows

TAKE_AN_ID = text("SELECT pg_current_xact_id()")
AGENTS = ("a", "b", "c")
FLOW_SECONDS = 5


async def there_now(api: Api, cursor: str) -> tuple[list[str], str]:
    """The subjects of all visible events after this cursor, and the cursor after them."""
    async with listening(api, "/events", cursor, follow="false") as listener:
        await listener.until_end()
    return listener.subjects, listener.cursor


async def where_it_stands(api: Api) -> str:
    """The cursor after all visible events."""
    return (await there_now(api, "0.0"))[1]


async def test_later_events_wait_for_a_slow_transaction(api: Api, sessions: Sessions) -> None:
    """On the stream of all events, committed events wait for an open transaction with earlier numbers."""
    await api.register("slow", "s1")
    await api.register("bot", "v1")
    start = await where_it_stands(api)
    async with listening(api, "/events", start) as live:
        async with sessions() as session, session.begin():
            await write_event(session, "slow", "late")
            await in_transaction(sessions, partial(write_event, agent_name="bot", subject="meanwhile"))
            subjects, cursor = await there_now(api, start)
            assert subjects == []
        async with listening(api, "/events", cursor) as back:
            await back.until(2)
        await live.until(2)
    assert set(back.subjects) == {"late", "meanwhile"}
    assert set(live.subjects) == {"late", "meanwhile"}


async def test_an_event_numbered_first_and_committed_last_is_sent(api: Api, sessions: Sessions) -> None:
    """Events with later numbers were read before its commit; a cursor of serial numbers would skip it."""
    await api.register("slow", "s1")
    await api.register("bot", "v1")
    cursor = await where_it_stands(api)
    async with sessions() as slow, slow.begin():
        async with sessions() as quick, quick.begin():
            await quick.execute(TAKE_AN_ID)
            await write_event(slow, "slow", "late")
            await write_event(quick, "bot", "meanwhile")
        async with listening(api, "/events", cursor) as listener:
            await listener.until(1)
            assert listener.subjects == ["meanwhile"]
    numbered = await rows(sessions, "SELECT subject FROM outbox ORDER BY id DESC LIMIT 2")
    assert [row.subject for row in numbered] == ["meanwhile", "late"]
    async with listening(api, "/events", listener.cursor) as back:
        await back.until(1)
    assert back.subjects == ["late"]


async def test_all_events_keep_the_order_of_each_agent(api: Api, sessions: Sessions) -> None:
    """Also if an older transaction changes the agent after a younger one."""
    await api.register("bot", "v1")
    cursor = await where_it_stands(api)
    async with sessions() as session, session.begin():
        await session.execute(TAKE_AN_ID)
        await in_transaction(sessions, partial(write_event, agent_name="bot", subject="first"))
        await write_event(session, "bot", "second")
    async with listening(api, "/events", cursor) as listener:
        await listener.until(2)
    assert listener.subjects == ["first", "second"]


async def test_the_events_of_an_agent_do_not_wait_for_other_agents(api: Api, sessions: Sessions) -> None:
    """Its own sequence shows that none is missing, whatever other transactions are open."""
    agent = await api.register("bot", "v1")
    await api.register("slow", "s1")
    async with listening(api, f"/agents/{agent['id']}/events") as listener, sessions() as session, session.begin():
        await write_event(session, "slow", "late")
        await api.register("bot", "v2")
        await listener.until_subject("v2", seconds=2)


async def write_for_a_while(sessions: Sessions, agent: str, hold_seconds: float) -> None:
    """Write events one after another, each committed after a pause."""
    loop = asyncio.get_running_loop()
    until = loop.time() + FLOW_SECONDS
    for number in count():
        async with sessions() as session, session.begin():
            await write_event(session, agent, f"{agent}-{number}")
            await asyncio.sleep(hold_seconds)
        if loop.time() > until:
            return


async def has_read(listener: Listener, events: int, writing: asyncio.Future[list[None]]) -> bool:
    """Whether that many events have arrived, or the writers are done."""
    return len(listener.events) >= events or writing.done()


async def read_in_pieces(apis: Sequence[Api], path: str, writing: asyncio.Future[list[None]]) -> list[Block]:
    """All events after the first cursor, read by a client that reconnects after every few events."""
    events: list[Block] = []
    cursor = "0.0" if path == "/events" else "0"
    for api in cycle(apis):
        async with listening(api, path, cursor) as listener:
            pieces = len(events) % 7 + 1
            await eventually(lambda: has_read(listener, pieces, writing), "a few events")  # noqa: B023 - awaited here
        events += listener.events
        cursor = listener.cursor if listener.blocks else cursor
        if writing.done():
            async with listening(api, path, cursor, follow="false") as last:
                await last.until_end()
            return events + last.events
    raise AssertionError


async def test_a_client_that_reconnects_often_misses_nothing(
    settings: Settings, sessions: Sessions, tmp_path: Path
) -> None:
    """While quick and slow transactions write events, and with a different API process each time."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        api_process(settings, tmp_path) as one,
        api_process(settings, tmp_path) as two,
        aiohttp.ClientSession(connector=connector) as client,
    ):
        apis = [Api(one, client), Api(two, client)]
        ids = {name: (await apis[0].register(name))["id"] for name in AGENTS}
        writing = asyncio.gather(
            *(write_for_a_while(sessions, *each) for each in zip(AGENTS, (0, 0.02, 0.7), strict=True))
        )
        paths = ["/events", *(f"/agents/{agent_id}/events" for agent_id in ids.values())]
        reading = [asyncio.create_task(read_in_pieces(apis, path, writing)) for path in paths]
        await writing
        all_events, *own = await asyncio.gather(*reading)
    written: dict[str, list[int]] = defaultdict(list)
    for row in await rows(sessions, "SELECT agent_id::text AS agent, sequence FROM outbox ORDER BY sequence"):
        written[row.agent].append(row.sequence)
    assert sum(map(len, written.values())) > 100
    for agent_id, events in zip(ids.values(), own, strict=True):
        assert [int(each.event["sequence"]) for each in events] == written[agent_id]
    for agent_id in ids.values():
        mine = [int(each.event["sequence"]) for each in all_events if each.event["data"]["agent_id"] == agent_id]
        assert mine == written[agent_id]
