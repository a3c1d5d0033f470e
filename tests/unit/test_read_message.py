from uuid import UUID

import pytest
from pydantic_core import to_json

from contracts.messages import REGISTRATION_MAX_BYTES
from services.domain.announcement import Announcement
from services.registration.batch import Unreadable, read_message
from services.registration.parked import Envelope
from tests.support.factories import a_body

KEY = "agent.support-bot"
FIVE_MIB = 5 * 1024 * 1024


def unreadable(body: bytes, key: str = KEY) -> Unreadable:
    """What a message that cannot be read turns into; it keeps its envelope, to be parked in."""
    read = read_message(Envelope(key, body))
    assert isinstance(read.content, Unreadable)
    assert read.envelope == Envelope(key, body)
    return read.content


def test_a_well_formed_message_is_an_announcement() -> None:
    """Id and time are the message's own, the trace context is the transport's."""
    body = a_body(deployment_id="v1")
    read = read_message(Envelope(KEY, to_json(body)), traceparent="00-1-2-3")
    assert isinstance(read.content, Announcement)
    assert (read.content.name, read.content.deployment_id) == ("support-bot", "v1")
    assert (str(read.content.message_id), read.content.traceparent) == (body["message_id"], "00-1-2-3")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b'{"name":"support-bot"}', b"{}" * 2, b"[" * 60_000],
)
def test_what_is_no_registration_is_malformed(body: bytes) -> None:
    """Whatever bytes arrive, the answer is a refusal, never an exception; the key still says whose it was."""
    content = unreadable(body)
    assert (content.error.reason, content.name, content.message_id) == ("malformed", "support-bot", None)


def test_a_refusal_names_the_field_and_keeps_a_message_id_that_can_be_made_out() -> None:
    """An operator reads what is wrong; the inbox can answer for the message by its id."""
    body = a_body(acp_url="nowhere")
    content = unreadable(to_json(body))
    assert content.error.message.startswith("acp_url: ")
    assert content.message_id == UUID(body["message_id"])


@pytest.mark.parametrize("message_id", [None, 7, "x", [], {}, "\x00"])
def test_a_broken_message_id_is_none(message_id: object) -> None:
    """A message without a readable id is refused and has none."""
    content = unreadable(to_json({**a_body(), "message_id": message_id}))
    assert (content.error.reason, content.message_id) == ("malformed", None)


@pytest.mark.parametrize(
    "key", ["agent.mail-bot", "agent.", "", "deployment.support-bot", "agent.support-bot.x", "\x00"]
)
def test_key_and_body_must_name_the_same_agent(key: str) -> None:
    """G5: who may publish under one name cannot speak for another."""
    body = a_body()
    content = unreadable(to_json(body), key)
    assert content.error.reason == "key-mismatch"
    assert content.message_id == UUID(body["message_id"])
    assert content.name == ("mail-bot" if key == "agent.mail-bot" else None)


def test_a_body_of_5_mib_is_refused_unread() -> None:
    """The size is checked before anything is parsed."""
    body = to_json(a_body(description="x" * FIVE_MIB))
    assert unreadable(body).error.reason == "message-too-large"


def test_a_body_may_be_as_large_as_the_limit() -> None:
    """One byte more is too large."""
    empty = len(to_json(a_body(description="")))
    fits = to_json(a_body(description="x" * (REGISTRATION_MAX_BYTES - empty)))
    # The time of day may be written shorter: fill up to the limit with blanks, which JSON ignores.
    fits = fits[:REGISTRATION_MAX_BYTES].ljust(REGISTRATION_MAX_BYTES)
    assert isinstance(read_message(Envelope(KEY, fits)).content, Announcement)
    assert unreadable(fits + b" ").error.reason == "message-too-large"
