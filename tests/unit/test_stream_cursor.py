"""Cursors as clients send them, and what a process keeps for clients that come back."""

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
    """A sequence among the events of an agent, two numbers among all."""
    assert parse_cursor(cursor, agent_id) == position
    assert parse_cursor(cursor_of(position), agent_id) == position


@pytest.mark.parametrize("agent_id", [AGENT, None])
@pytest.mark.parametrize(
    "cursor", ["", " ", "x", "-1", "+1", "1.", ".1", "1.2.3", "1 ", "1\n", "٣", "1_0", "0x1", str(2**63), "0" * 21]
)
def test_anything_else_is_none(cursor: str, agent_id: UUID | None) -> None:
    """Nothing that PostgreSQL could not store either."""
    with pytest.raises(ValueError, match=r".*"):
        parse_cursor(cursor, agent_id)


@pytest.mark.parametrize(("cursor", "agent_id"), [("1", None), ("1.2", AGENT)])
def test_a_cursor_of_the_other_kind_is_none(cursor: str, agent_id: UUID | None) -> None:
    """A sequence says nothing among all events."""
    with pytest.raises(ValueError, match=cursor):
        parse_cursor(cursor, agent_id)


def frames(*numbers: int) -> list[Frame]:
    """Events of ten bytes each."""
    return [Frame((number,), "type", b"0123456789") for number in numbers]


def test_a_topic_gives_each_client_what_it_has_not_seen() -> None:
    """A few at a time; who has seen everything stands where the topic stands."""
    topic = Topic((5,), most_bytes=1000)
    topic.add(frames(6, 7, 8), (8,))
    assert topic.after((5,), 10) == Step(frames(6, 7, 8), (8,))
    assert topic.after((6,), 10) == Step(frames(7, 8), (8,))
    assert topic.after((5,), 2) == Step(frames(6, 7), (7,))
    assert topic.after((8,), 10) == Step([], (8,))
    assert topic.after((9,), 10) == Step([], (9,)), "another process was ahead of this one"


def test_a_topic_keeps_no_more_than_it_may() -> None:
    """Who is behind that is told so, and reads for itself."""
    topic = Topic((0,), most_bytes=25)
    topic.add(frames(1, 2), (2,))
    assert topic.after((0,), 10) is not None
    topic.add(frames(3, 4), (4,))
    assert topic.after((1,), 10) is None
    assert topic.after((2,), 10) == Step(frames(3, 4), (4,))
    topic.add([Frame((5,), "type", b"0" * 100)], (5,))
    assert topic.after((4,), 10) is None
    assert topic.after((5,), 10) == Step([], (5,))


def test_a_topic_that_starts_anew_has_everybody_look() -> None:
    """Something was removed that it had not read: nobody may be handed what comes after as if nothing were missing."""
    topic = Topic((0,), most_bytes=1000)
    topic.add(frames(1), (1,))
    changed = topic.changed
    topic.restart((7,))
    assert changed.is_set()
    assert topic.after((1,), 10) is None
    assert topic.after((7,), 10) == Step([], (7,))
