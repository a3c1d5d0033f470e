"""`podium webhooks`, and what `podium doctor` says of webhooks."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Network

import pytest_asyncio
from sqlalchemy import text

from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.api.client import Api, running_api
from tests.integration.cli.terminal import Terminal
from tests.support.receivers import running_receiver
from tests.support.waiting import rows

DELIVERED = """
INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, agent_id, agent_name, sequence, attempt, outcome,
    status, detail, seconds)
SELECT id, id, 'podium.agent.registered.v1', id, 'bot', 1, 2, 'refused', 500, 'not today', 0.1 FROM webhooks
"""


@pytest_asyncio.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """An API that may send to this machine."""
    local = settings.model_copy(update={"webhook_dial_networks": (IPv4Network("127.0.0.0/8"),)})
    async with running_api(local) as api:
        yield api


async def test_the_life_of_a_webhook(terminal: Terminal, api: Api, sessions: Sessions) -> None:
    """Each command does what its name says; the secret is printed when it is made, and by `-q` alone."""
    await api.register("bot")
    assert "webhooks create" in (await terminal.quickly_done("webhooks", "list")).err
    async with running_receiver() as receiver:
        options = ("--agent", "bot", "--event", "podium.deployment.", "--owner", "amy")
        made = await terminal.quickly_done("webhooks", "create", receiver.url, *options)
        assert made.err == "Store the secret now: it cannot be read again.\n"
        assert "whsec_" in made.out
        (webhook,) = (await terminal.quickly_done("webhooks", "list", "-q")).out.split()
        listed = await terminal.quick("webhooks", "list", "--agent", "bot")
        assert all(each in listed.out for each in (webhook, "active", "podium.deployment.", receiver.url))
        tested = await terminal.quick("webhooks", "test", webhook)
        assert (tested.code, tested.out.split()[0]) == (0, "accepted")
        receiver.answer = lambda _: 503
        refused = await terminal.quick("webhooks", "test", webhook)
        assert refused.code == 1
        assert refused.out.startswith("refused (status 503")
    rotated = await terminal.quickly_done("webhooks", "rotate", webhook, "--overlap", "1h", "-q")
    assert rotated.out.startswith("whsec_")
    assert (await terminal.quickly_done("webhooks", "pause", webhook)).out == f"Webhook {webhook} is paused.\n"
    assert "paused since" in (await terminal.quick("webhooks", "show", webhook)).out
    waits = (await terminal.quick("webhooks", "replay", webhook, "--since", "2h")).out
    assert waits == f"Webhook {webhook} gets these events again once it is resumed: it is paused.\n"
    assert (await terminal.quickly_done("webhooks", "resume", webhook, "--cursor", "now")).out == (
        f"Webhook {webhook} is active.\n"
    )
    again = await terminal.quick("webhooks", "replay", webhook, "--since", "2h")
    assert (again.code, again.out) == (0, f"Webhook {webhook} gets these events again.\n")
    assert (await terminal.quick("webhooks", "replay", webhook)).code == 2
    async with sessions() as session, session.begin():
        await session.execute(text(DELIVERED))
    shown = await terminal.quick("webhooks", "deliveries", webhook)
    assert "500 not today" in shown.out
    assert (await terminal.quickly_done("webhooks", "delete", webhook)).out == f"Webhook {webhook} is deleted.\n"
    assert (await terminal.quick("webhooks", "show", webhook)).code == 4
    assert (await terminal.quick("webhooks", "show", "mine")).code == 2


async def test_the_doctor_and_webhooks(terminal: Terminal, settings: Settings, api: Api, sessions: Sessions) -> None:
    """G103: it warns of a webhook that is disabled or behind, and of events that no worker hands out."""
    database = {"PODIUM_DATABASE_URL": settings.database_url.get_secret_value()}

    async def found() -> list[str]:
        checks = (await terminal.quick("doctor", "--json", **database)).json
        return [each["finding"] for each in checks if "webhook" in each["finding"]]

    assert await found() == ["webhooks are delivered in time"]
    await terminal.quickly_done("webhooks", "create", "https://receiver.example/hook")
    await api.register("bot", "v1")
    assert await found() == ["webhooks are delivered in time"]
    (webhook,) = await rows(sessions, "SELECT * FROM webhooks")
    async with sessions() as session, session.begin():
        await session.execute(text("UPDATE outbox SET created_at = created_at - interval '3 minutes'"))
    (unread,) = await found()
    assert unread.startswith("events wait for webhooks for 3m")
    async with sessions() as session, session.begin():
        await session.execute(text("UPDATE webhooks SET cursor_id = 1000000, missed = 7"))
        await session.execute(
            text(
                "INSERT INTO webhook_positions (webhook_id, agent_id, sequence, last_sequence) "
                "SELECT w.id, a.id, 0, 4 FROM webhooks AS w, agents AS a"
            )
        )
        await session.execute(
            text("UPDATE webhooks SET cursor_xid = (SELECT max(xid::text::bigint) FROM outbox)::text::xid8")
        )
    (behind,) = await found()
    assert behind.startswith(f"webhook {webhook.id} of all agents is 3m")
    assert behind.endswith("behind and has missed 7 events")
    async with sessions() as session, session.begin():
        await session.execute(text("UPDATE webhooks SET status = 'disabled', status_reason = 'failing'"))
    (disabled,) = await found()
    assert disabled == f"webhook {webhook.id} of all agents is disabled (failing) and has missed 7 events"
