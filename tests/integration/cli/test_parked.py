"""`podium parked`."""

from functools import partial

from aio_pika.abc import AbstractConnection

from services.registration.batch import read_message, register_batch
from services.registration.parked import Envelope
from services.storage.database import Sessions, in_transaction
from tests.integration.cli.terminal import Terminal


async def park(sessions: Sessions, body: bytes, key: str = "agent.bot") -> None:
    """Refuse this message, as a registrar does."""
    await in_transaction(sessions, partial(register_batch, batch=[read_message(Envelope(key, body))]))


async def test_a_parked_message_is_listed_shown_sent_again_and_dropped(
    terminal: Terminal,
    sessions: Sessions,
    broker: AbstractConnection,  # noqa: ARG001 - declares the topology
) -> None:
    """The steps of an operator, in order."""
    nothing = await terminal.quick("parked", "list")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "There are no parked messages.\n")
    await park(sessions, b'{"name": "bot"}')
    listed = await terminal.quick("parked", "list")
    assert "malformed" in listed.out
    assert "bot" in listed.out
    (found,) = (await terminal.quick("parked", "list", "--agent", "bot", "--json")).json
    assert (await terminal.quick("parked", "list", "--agent", "other", "-q")).out == ""
    shown = (await terminal.quick("parked", "show", found["id"])).out
    assert '{"name": "bot"}' in shown
    assert "agent.bot" in shown
    sent = await terminal.done("parked", "retry", found["id"], "--json")
    assert (sent.code, sent.json["id"]) == (0, found["id"])
    assert (await terminal.quick("parked", "list", "--json")).json[0]["retried_at"] == sent.json["retried_at"]
    dropped = await terminal.done("parked", "drop", found["id"])
    assert dropped.out == f"The parked message {found['id']} is dropped.\n"
    again = await terminal.quick("parked", "drop", found["id"])
    assert again.code == 4
    assert again.error == "There is no parked message with this id: list the parked messages to see their ids."
    assert (await terminal.quick("parked", "show", "x")).code == 2
