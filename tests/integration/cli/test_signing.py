"""Commands that sign: `podium register`, `podium deregister`, `podium agents key` and retries of parked messages."""

import pytest
from aio_pika.abc import AbstractConnection

from services.registration.signatures import signing_key
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.cli.terminal import Terminal
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.waiting import eventually_rows
from workers.runner import run_registrar

POD = ["--name", "bot", "--deployment", "v1", "--instance", "pod-1"]
ADDRESS = ["--acp-url", "http://10.0.0.7:8000"]


@pytest.fixture
def strict(settings: Settings, broker: AbstractConnection) -> Settings:
    """The settings of a registrar that requires signatures; the queue is declared."""
    del broker
    return settings.model_copy(update={"require_signed_announcements": True})


async def test_the_commands_sign_with_either_key(terminal: Terminal, strict: Settings, sessions: Sessions) -> None:
    """G78: With the agent's key, or the secret key that it is derived from, both commands are decided; else refused."""
    secret = strict.secret_key.get_secret_value()
    printed = await terminal.quick("agents", "key", "bot", PODIUM_SECRET_KEY=secret)
    key = printed.out.strip()
    assert (printed.code, key) == (0, signing_key(secret, "bot"))
    async with working(run_registrar, strict):
        unsigned = await terminal.quick("register", *POD, *ADDRESS)
        assert unsigned.code == 1
        assert "signature" in unsigned.err
        assert (await terminal.quick("register", *POD, *ADDRESS, PODIUM_AGENT_KEY=key)).code == 0
        assert (await terminal.quick("deregister", *POD, PODIUM_SECRET_KEY=secret)).code == 0
    outcomes = await eventually_rows(sessions, "SELECT outcome FROM registrations ORDER BY seq", 2)
    assert [row.outcome for row in outcomes] == ["Registered", "Departed"]


async def test_a_key_is_printed_only_where_the_secret_is(terminal: Terminal) -> None:
    """Without the secret key, and for what is no name, the command fails with a sentence."""
    without = await terminal.quick("agents", "key", "bot")
    assert (without.code, "PODIUM_SECRET_KEY" in without.error) == (2, True)
    no_name = await terminal.quick("agents", "key", "Not A Name", PODIUM_SECRET_KEY="x")
    assert (no_name.code, "not the name" in no_name.error) == (2, True)


async def test_an_unsigned_message_is_sent_again_only_on_purpose(
    terminal: Terminal, strict: Settings, sessions: Sessions, broker: AbstractConnection
) -> None:
    """G79: `parked retry` is refused with advice; with --accept-unsigned the message is applied."""
    async with working(run_registrar, strict):
        await publish(broker, a_body("bot", deployment_id="v1"))
        (row,) = await eventually_rows(sessions, "SELECT id FROM parked WHERE reason = 'not-signed'")
        refused = await terminal.quick("parked", "retry", str(row.id))
        assert (refused.code, "signature" in refused.error) == (5, True)
        assert (await terminal.quick("parked", "retry", str(row.id), "--accept-unsigned")).code == 0
        await eventually_rows(sessions, "SELECT 1 FROM registrations WHERE outcome = 'Registered'")
