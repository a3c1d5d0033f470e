"""Cursors of the event log, and the recent events that a process keeps for reconnecting clients."""

from uuid import UUID

import pytest

from api.events.topics import Frame, Step, Topic
from services.events.log import Position, cursor_of, parse_cursor

AGENT = UUID(int=1)


@pytest.mark.parametrize(
    ("cursor", "agent_id", "position"),
    [
        ("0", AGENT, (0,)),
        ("42", AGENT, (42,)),
        ("00000000000000000042", AGENT, (42,)),
        (str(2**63 - 1), AGENT, (2**63 - 1,)),
        ("0.0", None, (0, 0)),
        ("4711.42", None, (4711, 42)),
        (f"{2**63 - 1}.{2**63 - 1}", None, (2**63 - 1, 2**63 - 1)),
    ],
)
def test_a_cursor_names_a_position(cursor: str, agent_id: UUID | None, position: Position) -> None:
    """A cursor of one agent is a sequence; a cursor of all events is `xid.id`."""
    assert parse_cursor(cursor, agent_id) == position
    assert parse_cursor(cursor_of(position), agent_id) == position


@pytest.mark.parametrize("agent_id", [AGENT, None])
@pytest.mark.parametrize(
    "cursor", ["", " ", "x", "-1", "+1", "1.", ".1", "1.2.3", "1 ", "1\n", "٣", "1_0", "0x1", str(2**63), "0" * 21]
)
def test_a_malformed_cursor_is_rejected(cursor: str, agent_id: UUID | None) -> None:
    """This includes numbers that exceed a bigint."""
    with pytest.raises(ValueError, match=r".*"):
        parse_cursor(cursor, agent_id)


@pytest.mark.parametrize(("cursor", "agent_id"), [("1", None), ("1.2", AGENT)])
def test_a_cursor_of_the_other_kind_is_rejected(cursor: str, agent_id: UUID | None) -> None:
    """Cursors of one agent and of all events are not interchangeable."""
    with pytest.raises(ValueError, match=cursor):
        parse_cursor(cursor, agent_id)


def frames(*numbers: int) -> list[Frame]:
    """Events of ten bytes each."""
    return [Frame((number,), "type", "bot", b"0123456789") for number in numbers]


def test_a_topic_gives_each_client_the_events_after_its_position() -> None:
    """At most `limit` at a time; after the last event, the position is the topic's."""
    topic = Topic((5,), max_bytes=1000)
    topic.add(frames(6, 7, 8), (8,))
    assert topic.after((5,), 10) == Step(frames(6, 7, 8), (8,))
    assert topic.after((6,), 10) == Step(frames(7, 8), (8,))
    assert topic.after((5,), 2) == Step(frames(6, 7), (7,))
    assert topic.after((8,), 10) == Step([], (8,))
    assert topic.after((9,), 10) == Step([], (9,)), "another process was ahead of this one"


def test_a_topic_keeps_at_most_its_byte_limit() -> None:
    """A client behind the kept events gets None, and must read the database."""
    topic = Topic((0,), max_bytes=25)
    topic.add(frames(1, 2), (2,))
    assert topic.after((0,), 10) is not None
    topic.add(frames(3, 4), (4,))
    assert topic.after((1,), 10) is None
    assert topic.after((2,), 10) == Step(frames(3, 4), (4,))
    topic.add([Frame((5,), "type", "bot", b"0" * 100)], (5,))
    assert topic.after((4,), 10) is None
    assert topic.after((5,), 10) == Step([], (5,))


def test_a_restarted_topic_sends_its_clients_to_the_database() -> None:
    """After a gap, no client may get the later events as if none were missing."""
    topic = Topic((0,), max_bytes=1000)
    topic.add(frames(1), (1,))
    changed = topic.changed
    topic.restart((7,))
    assert changed.is_set()
    assert topic.after((1,), 10) is None
    assert topic.after((7,), 10) == Step([], (7,))
