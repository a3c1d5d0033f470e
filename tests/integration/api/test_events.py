"""Event streams: what they look like, where they start, and that nothing is missing."""

from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from services.events.outbox import claim, envelope
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.streams import listening, write_event
from tests.support.waiting import eventually

PROMOTED = "podium.deployment.promoted.v1"


async def test_the_format_of_a_stream(api: Api, sessions: Sessions) -> None:
    """First `retry` and a cursor, then the events, byte for byte as on the broker."""
    agent = await api.register("bot", "v1")
    async with (
        listening(api, "/events", since="oldest") as all_events,
        listening(api, f"/agents/{agent['id']}/events", "0") as own,
    ):
        await own.until(4)
        await all_events.until(4)
    for listener in (all_events, own):
        headers = listener.response.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert listener.blocks[0].fields["retry"] == "1000"
    async with sessions() as session:
        rows = await claim(await session.connection(), 10)
        xids = [row.xid for row in await session.execute(text("SELECT xid::text AS xid FROM outbox ORDER BY id"))]
    bodies = [envelope(row).model_dump_json(exclude_none=True) for row in rows]
    assert [block.fields["data"] for block in own.events] == bodies
    assert [block.fields["data"] for block in all_events.events] == bodies
    assert [block.fields["event"] for block in own.events] == [row.type for row in rows]
    assert [block.fields["id"] for block in own.events] == ["1", "2", "3", "4"]
    positions = [f"{xid}.{row.id}" for xid, row in zip(xids, rows, strict=True)]
    assert [block.fields["id"] for block in all_events.events] == positions


async def test_a_stream_without_cursor_starts_when_its_headers_arrive(api: Api, sessions: Sessions) -> None:
    """Events committed after the headers arrive are sent, earlier events are not."""
    agent = await api.register("bot", "v1")
    for number in range(20):
        async with (
            listening(api, f"/agents/{agent['id']}/events") as own,
            listening(api, "/events") as all_events,
        ):
            await in_transaction(sessions, partial(write_event, agent_name="bot", subject=f"s{number}"))
            for listener in (own, all_events):
                await listener.until_subject(f"s{number}")
                assert listener.subjects[-1:] == [f"s{number}"]
            assert own.subjects == [f"s{number}"]


async def test_a_client_that_disconnects_before_the_first_event_can_resume(api: Api) -> None:
    """The cursor of the start is sent at once."""
    agent = await api.register("bot", "v1")
    for path in (f"/agents/{agent['id']}/events", "/events"):
        async with listening(api, path) as gone:

            async def began() -> bool:
                return bool(gone.blocks)

            await eventually(began, "the cursor")
        new = str(uuid4())
        await api.register("bot", new)
        async with listening(api, path, gone.cursor) as back:
            await back.until_subject(new)


async def test_the_list_of_agents_and_the_stream_at_its_cursor_miss_nothing(api: Api, sessions: Sessions) -> None:
    """Including events of a transaction that was open while the list was read."""
    await api.register("bot", "v1")
    await api.register("slow", "s1")
    async with sessions() as session, session.begin():
        await write_event(session, "slow", "late")
        await api.register("bot", "v2")
        cursor = (await api.get("/agents")).headers["x-podium-cursor"]
        await api.register("bot", "v3")
    async with listening(api, "/events", cursor) as listener:
        await listener.until_subject("v3")
        await listener.until_subject("late")


async def test_both_ways_to_name_a_cursor(api: Api) -> None:
    """The header wins over the query, an empty header is ignored, and sequences may be zero-padded."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}/events"
    for cursor, query, expected in [
        ("2", {}, [3, 4]),
        ("00000000000000000003", {}, [4]),
        ("3", {"since": "0"}, [4]),
        (None, {"since": "1"}, [2, 3, 4]),
        ("", {"since": "2"}, [3, 4]),
        (None, {"since": "oldest"}, [1, 2, 3, 4]),
        ("4", {}, []),
    ]:
        async with listening(api, path, cursor, follow="false", **query) as listener:
            await listener.until_end()
            assert listener.sequences == expected


@pytest.mark.parametrize("cursor", ["x", "-1", "1.", "1.2.3", "1 2", "٣", "9" * 20, "1" * 21, "+1"])
async def test_an_invalid_cursor_is_refused(api: Api, cursor: str) -> None:
    """In the header and in the query, for one agent and for all; the error names which one."""
    agent = await api.register("bot", "v1")
    for path in (f"/agents/{agent['id']}/events", "/events"):
        refused = await api.get(path, params={"since": cursor})
        refused.problem(400, "invalid-request", "since")
        if cursor.isascii():
            refused = await api.get(path, headers={"last-event-id": cursor})
            refused.problem(400, "invalid-request", "Last-Event-ID")


async def test_a_cursor_of_other_events_is_refused(api: Api) -> None:
    """A sequence is not valid for all events, nor the reverse; a cursor after the newest event is not valid either."""
    agent = await api.register("bot", "v1")
    own = f"/agents/{agent['id']}/events"
    for path, cursor in [("/events", "4"), (own, "1.2"), (own, "5"), ("/events", f"{2**62}.0"), (own, f"{2**63 - 1}")]:
        refused = await api.get(path, headers={"last-event-id": cursor})
        refused.problem(400, "invalid-request", "Last-Event-ID")


async def test_only_the_requested_types_are_sent(api: Api) -> None:
    """Types match exactly, several may be given, and an unknown type is refused."""
    agent = await api.register("bot", "v1")
    created = "podium.deployment.created.v1"
    for path in (f"/agents/{agent['id']}/events", "/events"):
        async with listening(api, path, since="oldest", follow="false", types=[PROMOTED, created]) as listener:
            await listener.until_end()
        assert [block.fields["event"] for block in listener.events] == [created, PROMOTED]
        (await api.get(path, params={"type": "podium.deployment.*"})).problem(400, "invalid-request", "type")


async def test_an_event_of_a_type_of_a_newer_version_is_sent(api: Api, sessions: Sessions) -> None:
    """G55: during an upgrade, an older API passes it on unchanged, unless the client requests other types."""
    agent = await api.register("bot", "v1")
    newer = "podium.deployment.weighed.v2"
    async with sessions.begin() as session:
        await session.execute(text("UPDATE outbox SET type = :type WHERE sequence = 2"), {"type": newer})
    for path in (f"/agents/{agent['id']}/events", "/events"):
        async with listening(api, path, since="oldest", follow="false") as listener:
            await listener.until_end()
        assert [block.fields["event"] for block in listener.events][1] == newer
        assert listener.sequences == [1, 2, 3, 4]
        async with listening(api, path, since="oldest", follow="false", types=[PROMOTED]) as filtered:
            await filtered.until_end()
        assert [block.fields["event"] for block in filtered.events] == [PROMOTED]


async def test_a_stream_without_events_sends_heartbeats(serve: Serve) -> None:
    """With the cursor, if it has moved past events of other types."""
    api = await serve(sse_heartbeat=timedelta(milliseconds=100))
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}/events"
    async with listening(api, path, types=[PROMOTED]) as listener:

        async def alive() -> bool:
            return sum(block.comments == (": heartbeat",) for block in listener.blocks) >= 3

        await eventually(alive, "three signs of life")
        assert listener.cursor == "4"
        await api.register("bot", "v2")

        async def moved() -> bool:
            return listener.cursor == "6"

        await eventually(moved, "the cursor has passed what is not wanted")
        assert not listener.events
    async with listening(api, path, listener.cursor, follow="false") as back:
        await back.until_end()
        assert not back.events


async def test_the_deletion_of_an_agent_is_an_event(api: Api) -> None:
    """Present and later clients of its stream receive it; an agent that never existed has no stream."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}/events"
    async with listening(api, path) as listener:
        await api.delete(f"/agents/{agent['id']}")
        await listener.until_subject(agent["id"])
    async with listening(api, path, "0", follow="false") as later:
        await later.until_end()
    assert later.events[-1].fields["event"] == "podium.agent.deleted.v1"
    assert later.sequences == [1, 2, 3, 4, 5, 6]
    for unknown in (str(uuid4()), "bot"):
        (await api.get(f"/agents/{unknown}/events")).problem(404, "agent-not-found")


async def test_the_streams_need_a_key(serve: Serve) -> None:
    """The key is checked before the agent and the cursor."""
    api = await serve(api_key=SecretStr("key"))
    for path in (f"/agents/{uuid4()}/events", "/events"):
        (await api.get(path, params={"since": "x"})).problem(401, "unauthorized")


async def test_the_streams_are_described(api: Api) -> None:
    """The OpenAPI document describes their content and parameters."""
    paths = (await api.get("/openapi.json")).json["paths"]
    for path in ("/events", "/agents/{agent_id}/events"):
        described = paths[path]["get"]
        assert list(described["responses"]["200"]["content"]) == ["text/event-stream"]
        assert "410" in described["responses"]
        names = {parameter["name"] for parameter in described["parameters"]}
        assert {"Last-Event-ID", "since", "type", "follow"} <= names
