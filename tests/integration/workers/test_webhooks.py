"""Deliveries of webhooks: order, retries, and what a receiver in trouble does to others."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from services.domain.identity import EVERYBODY
from services.events.epochs import adopt_cluster
from services.events.log import Position, event_cursor, parse_cursor
from services.events.outbox import envelope
from services.registration.batch import register_batch
from services.retention.tasks import RetentionTask, sweep
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from services.storage.models import Webhook
from services.webhooks import deliveries, registry
from services.webhooks.positions import hand_out, webhook_states
from services.webhooks.sender import Attempt
from services.webhooks.signing import shown
from tests.integration.workers.conftest import working
from tests.integration.workers.receiving import AMY, a_webhook, happen, nothing_waits
from tests.support.factories import incoming
from tests.support.receivers import Received, running_receiver
from tests.support.waiting import eventually, eventually_rows, rows
from workers.runner import run_webhooks


async def state_of(sessions: Sessions, webhook_id: UUID) -> Any:
    """The row of the webhook."""
    (row,) = await rows(sessions, "SELECT * FROM webhooks WHERE id = :id", id=webhook_id)
    return row


async def test_events_arrive_signed_and_in_order(quick: Settings, sessions: Sessions) -> None:
    """G100: each agent's events, in sequence order, as CloudEvents with a signature that others verify."""
    async with running_receiver() as receiver:
        webhook = await a_webhook(sessions, receiver.url)
        async with working(run_webhooks, quick):
            await asyncio.gather(*(happen(sessions, f"bot-{n}", "v1", "v2") for n in range(5)))
            await asyncio.gather(*(receiver.until(f"bot-{n}", 6) for n in range(5)))
    for n in range(5):
        assert receiver.sequences(f"bot-{n}") == [1, 2, 3, 4, 5, 6]
    verifier = Verifier(shown(webhook.secret))
    stored = {str(row.event_id): row for row in await rows(sessions, "SELECT * FROM outbox")}
    for received in receiver.seen:
        event = verifier.verify(received.body, received.headers)
        assert received.headers["content-type"] == "application/cloudevents+json"
        assert received.headers["webhook-id"] == event["id"]
        assert stored[event["id"]].payload == event["data"]
    with pytest.raises(WebhookVerificationError):
        verifier.verify(receiver.seen[0].body + b" ", receiver.seen[0].headers)


async def test_a_failing_receiver_gets_the_same_event_until_it_accepts_it(quick: Settings, sessions: Sessions) -> None:
    """G100: byte-identical under the same id, and the agent's next event only afterwards."""
    refusals = {3: 3, 4: 1}

    def answer(received: Received) -> int:
        refusals[received.sequence] = refusals.get(received.sequence, 0) - 1
        return 500 if refusals[received.sequence] >= 0 else 204

    async with running_receiver(answer) as receiver, working(run_webhooks, quick):
        webhook = await a_webhook(sessions, receiver.url)
        await happen(sessions, "bot", "v1", "v2")
        await receiver.until("bot", 6)
        assert [each.sequence for each in receiver.seen] == [1, 2, 3, 3, 3, 3, 4, 4, 5, 6]
        attempts = [each for each in receiver.seen if each.sequence == 3]
        assert len({each.body for each in attempts}) == len({each.headers["webhook-id"] for each in attempts}) == 1
        recorded = await eventually_rows(sessions, "SELECT * FROM webhook_deliveries ORDER BY id", 10)
        assert [(each.sequence, each.attempt, each.outcome) for each in recorded][2:7] == [
            *((3, attempt, "refused") for attempt in (1, 2, 3)),
            (3, 4, "accepted"),
            (4, 1, "refused"),
        ]
        assert recorded[2].detail == "status 500"
        assert (await state_of(sessions, webhook.id)).failing_since is None
        await nothing_waits(sessions)


async def test_an_agent_whose_events_are_refused_delays_no_other(quick: Settings, sessions: Sessions) -> None:
    """G101: the events of other agents go on, whether the receiver refuses those of one agent or never answers."""
    async with running_receiver(lambda received: 500 if received.agent == "poor" else 200) as receiver:
        held = receiver.hold("silent")
        await a_webhook(sessions, receiver.url)
        async with working(run_webhooks, quick):
            await happen(sessions, "poor", "v1")
            await happen(sessions, "silent", "v1")
            await receiver.until_seen(2, "poor")
            await receiver.until_seen(1, "silent")
            for version in ("v1", "v2", "v3"):
                await happen(sessions, "fine", version)
                began = asyncio.get_running_loop().time()
                await receiver.until("fine", {"v1": 4, "v2": 6, "v3": 8}[version])
                assert asyncio.get_running_loop().time() - began < quick.webhook_timeout.total_seconds()
            assert {each.sequence for each in receiver.seen if each.agent == "poor"} == {1}
            receiver.answer = lambda _: 200
            held.set()
            await receiver.until("poor", 4)
            await receiver.until("silent", 4)
    for agent, last in (("poor", 4), ("fine", 8)):
        assert receiver.sequences(agent) == list(range(1, last + 1))


async def test_a_receiver_that_never_answers_delays_no_other(quick: Settings, sessions: Sessions) -> None:
    """G101: with few slots in all, receivers in trouble leave some to the others."""
    few = quick.model_copy(update={"webhook_concurrency": 4, "webhook_timeout": timedelta(seconds=2)})
    async with running_receiver() as stuck, running_receiver() as fine:
        agents = [f"bot-{n}" for n in range(6)]
        for agent in agents:
            stuck.hold(agent)
        for _ in range(3):
            await a_webhook(sessions, stuck.url)
        await a_webhook(sessions, fine.url, agent_name=None)
        async with working(run_webhooks, few):
            await happen(sessions, "first", "v1")
            await fine.until("first", 4)
            await asyncio.gather(*(happen(sessions, agent, "v1") for agent in agents))
            await stuck.until_seen(3)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(fine.until(agent, 4) for agent in agents))
            assert asyncio.get_running_loop().time() - began < few.webhook_timeout.total_seconds() * 2
            for event in stuck.held.values():
                event.set()


async def test_a_slow_transaction_loses_no_event(quick: Settings, sessions: Sessions) -> None:
    """G100: its events have an older transaction id than others that were delivered before it committed."""
    async with running_receiver() as receiver, working(run_webhooks, quick):
        await a_webhook(sessions, receiver.url)
        async with sessions() as slow, slow.begin():
            await register_batch(slow, [incoming("slow", deployment_id="slow-v1")])
            await happen(sessions, "quick", "v1", "v2")
            await asyncio.sleep(0.2)
        await receiver.until("slow", 4)
        await receiver.until("quick", 6)
    assert receiver.sequences("slow") == [1, 2, 3, 4]
    assert receiver.sequences("quick") == [1, 2, 3, 4, 5, 6]


async def test_two_workers_and_a_receiver_that_fails_at_random(quick: Settings, sessions: Sessions) -> None:
    """G100: the first acceptance of each event comes after that of the one before, and none is missing."""
    chance = Random(7)  # noqa: S311 - a test chooses answers
    async with running_receiver(lambda _: chance.choice((200, 200, 503))) as receiver:
        await a_webhook(sessions, receiver.url)
        async with working(run_webhooks, quick), working(run_webhooks, quick):
            await asyncio.gather(*(happen(sessions, f"bot-{n}", "v1", "v2", "v3", "v4") for n in range(6)))
            await asyncio.gather(*(receiver.until(f"bot-{n}", 10) for n in range(6)))
    for n in range(6):
        assert list(dict.fromkeys(receiver.sequences(f"bot-{n}"))) == list(range(1, 11))


async def test_only_what_is_wanted(quick: Settings, sessions: Sessions) -> None:
    """Of one agent, of exact types and of prefixes; the events before the webhook are not sent."""
    async with running_receiver() as receiver, working(run_webhooks, quick):
        await happen(sessions, "bot", "v0")
        types = ("podium.deployment.created.v1", "podium.agent.")
        await a_webhook(sessions, receiver.url, agent_name="bot", event_types=types)
        await happen(sessions, "bot", "v1", "v2")
        await happen(sessions, "other", "v1")
        await receiver.until_seen(2)
        await nothing_waits(sessions)
    assert [each.event["type"] for each in receiver.seen] == ["podium.deployment.created.v1"] * 2
    assert {each.agent for each in receiver.seen} == {"bot"}


async def test_a_receiver_that_is_gone(quick: Settings, sessions: Sessions) -> None:
    """G103: 410 disables the webhook at once; an event and the audit log tell it, and other webhooks get the event."""
    async with running_receiver(lambda _: 410) as gone, running_receiver() as other, working(run_webhooks, quick):
        webhook = await a_webhook(sessions, gone.url, agent_name=None)
        await a_webhook(sessions, other.url, event_types=("podium.webhook.",))
        await happen(sessions, "bot", "v1")
        (told,) = await other.until_seen(1)
        assert told.event["type"] == "podium.webhook.disabled.v1"
        assert told.event["subject"] == told.event["data"]["webhook_id"] == str(webhook.id)
        assert told.event["data"]["reason"] == "gone"
        state = await state_of(sessions, webhook.id)
        assert (state.status, state.status_reason) == ("disabled", "gone")
        (entry,) = await rows(sessions, "SELECT * FROM audit WHERE action = 'webhook.disabled'")
        assert (entry.actor, entry.subject) == ("podium", str(webhook.id))
        await happen(sessions, "bot", "v2")
        await other.until_seen(1)
        assert len(gone.seen) == 1
        gone.answer = lambda _: 200
        await resume(sessions, webhook.id)
        await gone.until("bot", 7)
    assert gone.sequences("bot") == [1, 2, 3, 4, 5, 6, 7]


async def test_a_receiver_that_accepts_nothing_for_long(quick: Settings, sessions: Sessions) -> None:
    """G103: after the set time without an acceptance the webhook is disabled, and not before."""
    limited = quick.model_copy(update={"webhook_disable_after": timedelta(seconds=1)})
    async with running_receiver(lambda _: 500) as receiver, working(run_webhooks, limited):
        webhook = await a_webhook(sessions, receiver.url)
        await happen(sessions, "bot", "v1")
        told = await eventually_rows(sessions, "SELECT * FROM outbox WHERE type = 'podium.webhook.disabled.v1'")
        state = await state_of(sessions, webhook.id)
        assert (state.status, state.status_reason) == ("disabled", "failing")
        assert state.status_changed_at - state.failing_since >= limited.webhook_disable_after
        assert told[0].payload["reason"] == "failing"
        assert told[0].sequence == 5
        seen = len(receiver.seen)
        receiver.answer = lambda _: 200
        await happen(sessions, "bot", "v2")
        assert len(receiver.seen) == seen
        await resume(sessions, webhook.id, start=await now(sessions))
        await happen(sessions, "bot", "v3")
        await receiver.until("bot", 9)
    assert receiver.sequences("bot") == [8, 9]


async def test_a_rotated_secret(quick: Settings, sessions: Sessions) -> None:
    """During the overlap, deliveries verify with either secret; after it, with the new one alone."""
    async with running_receiver() as receiver, working(run_webhooks, quick):
        webhook = await a_webhook(sessions, receiver.url)
        old = Verifier(shown(webhook.secret))
        new = Verifier(shown((await rotate(sessions, webhook.id, timedelta(hours=1))).secret))
        await happen(sessions, "bot", "v1")
        await receiver.until("bot", 4)
        for received in receiver.seen:
            assert old.verify(received.body, received.headers) == new.verify(received.body, received.headers)
        newest = Verifier(shown((await rotate(sessions, webhook.id, timedelta(0))).secret))
        await happen(sessions, "bot", "v2")
        await receiver.until("bot", 6)
        newest.verify(receiver.seen[-1].body, receiver.seen[-1].headers)
        for verifier in (old, new):
            with pytest.raises(WebhookVerificationError):
                verifier.verify(receiver.seen[-1].body, receiver.seen[-1].headers)


async def test_a_replay(quick: Settings, sessions: Sessions) -> None:
    """Stored events are sent again in order, and then those that follow; what waited is not lost."""
    async with running_receiver() as receiver, working(run_webhooks, quick):
        webhook = await a_webhook(sessions, receiver.url)
        await happen(sessions, "bot", "v1")
        await receiver.until("bot", 4)
        receiver.answer = lambda received: 500 if received.agent == "waiting" else 200
        await happen(sessions, "waiting", "v1")
        await receiver.until_seen(1, "waiting")
        since = datetime.now(UTC)
        await happen(sessions, "bot", "v2")
        await receiver.until("bot", 6)
        await replay(sessions, webhook.id, since)
        await happen(sessions, "bot", "v3")
        await receiver.until("bot", 8)
        assert receiver.sequences("bot") == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
        receiver.answer = lambda _: 200
        await receiver.until("waiting", 4)
        await replay(sessions, webhook.id, (0, 0))
        await eventually(lambda: _true(receiver.sequences("bot")[10:] == list(range(1, 9))), "all again")
    assert receiver.sequences("waiting")[:4] == [1, 2, 3, 4]


async def test_a_paused_webhook(quick: Settings, sessions: Sessions) -> None:
    """It gets nothing until it is resumed, and then everything."""
    async with running_receiver() as receiver, working(run_webhooks, quick):
        webhook = await a_webhook(sessions, receiver.url)
        other = await a_webhook(sessions, receiver.url, event_types=("podium.agent.",))
        await in_transaction(sessions, lambda session: registry.pause_webhook(session, webhook.id, EVERYBODY, AMY))
        await happen(sessions, "bot", "v1")
        await receiver.until_seen(1)
        await in_transaction(sessions, lambda session: registry.delete_webhook(session, other.id, EVERYBODY, AMY))
        assert len(receiver.seen) == 1
        await resume(sessions, webhook.id)
        await receiver.until("bot", 4)
    assert receiver.sequences("bot")[1:] == [1, 2, 3, 4]


async def test_events_that_were_removed_before_they_were_accepted(quick: Settings, sessions: Sessions) -> None:
    """G103: retention does not wait for a webhook; what it missed is counted, and the rest arrives in order."""
    async with running_receiver(lambda _: 500) as receiver:
        all_, created = await a_webhook(sessions, receiver.url), ("podium.deployment.created.v1",)
        some = await a_webhook(sessions, receiver.url, event_types=created)
        idle = await a_webhook(sessions, receiver.url, agent_name=None)
        await in_transaction(sessions, lambda session: registry.pause_webhook(session, idle.id, EVERYBODY, AMY))
        async with working(run_webhooks, quick):
            await happen(sessions, "bot", "v1", "v2")
            await receiver.until_seen(2)
        await in_transaction(sessions, lambda session: session.execute(text("UPDATE outbox SET published_at = now()")))
        week = quick.model_copy(update={"outbox_retention": timedelta(0), "sweep_batch_size": 4})
        step = await in_transaction(sessions, partial(sweep, task=RetentionTask.PUBLISHED_EVENTS, settings=week))
        assert step.rows == 4
        missed = [(await state_of(sessions, each.id)).missed for each in (all_, some, idle)]
        assert missed == [4, 1, 4]
        receiver.answer = lambda _: 200
        async with working(run_webhooks, quick):
            await eventually(lambda: _true(len(receiver.accepted) == 3), "the rest accepted")
            await nothing_waits(sessions)
    assert sorted(receiver.sequences("bot")) == [5, 5, 6]


async def resume(sessions: Sessions, webhook_id: UUID, **start: Any) -> None:
    """Resume a webhook."""
    await in_transaction(
        sessions, lambda session: registry.resume_webhook(session, webhook_id, EVERYBODY, AMY, **start)
    )


async def rotate(sessions: Sessions, webhook_id: UUID, overlap: timedelta) -> Webhook:
    """Rotate the secret of a webhook."""
    return await in_transaction(
        sessions, lambda session: registry.rotate_secret(session, webhook_id, EVERYBODY, AMY, overlap=overlap)
    )


async def replay(sessions: Sessions, webhook_id: UUID, since: datetime | Position) -> None:
    """Replay events to a webhook."""
    await in_transaction(sessions, lambda session: registry.replay(session, webhook_id, EVERYBODY, AMY, since=since))


async def now(sessions: Sessions) -> Position:
    """The current cursor of all events."""
    return parse_cursor(await in_transaction(sessions, event_cursor), None)


async def _true(value: bool) -> bool:  # noqa: FBT001 - for `eventually`
    return value


async def test_a_position_that_somebody_holds(quick: Settings, sessions: Sessions) -> None:
    """G101: such as a frozen process in the middle of a transaction: what waits of other agents goes on."""
    async with running_receiver(lambda _: 500) as receiver, working(run_webhooks, quick):
        await a_webhook(sessions, receiver.url)
        await happen(sessions, "held", "v1")
        await happen(sessions, "free", "v1")
        await receiver.until_seen(1, "held")
        await receiver.until_seen(1, "free")
        async with sessions() as holder, holder.begin():
            of_agent = "SELECT 1 FROM webhook_positions WHERE agent_id = (SELECT id FROM agents WHERE name = 'held')"
            await holder.execute(text(f"{of_agent} FOR UPDATE"))
            receiver.answer = lambda _: 200
            await receiver.until("free", 4)
        await receiver.until("held", 4)
    assert receiver.sequences("free") == [1, 2, 3, 4]
    assert list(dict.fromkeys(receiver.sequences("held"))) == [1, 2, 3, 4]


async def test_an_event_that_cannot_be_encoded(
    quick: Settings, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G101: it is a failed delivery of its agent, and delays no other."""

    def envelope_of(row: Any) -> Any:
        if row.agent_name == "odd":
            raise ValueError
        return envelope(row)

    monkeypatch.setattr(deliveries, "envelope", envelope_of)
    async with running_receiver() as receiver, working(run_webhooks, quick):
        await a_webhook(sessions, receiver.url)
        await happen(sessions, "odd", "v1")
        await happen(sessions, "fine", "v1")
        await receiver.until("fine", 4)
        failed = "SELECT * FROM webhook_deliveries WHERE outcome = 'failed' AND agent_name = 'odd'"
        assert (await eventually_rows(sessions, failed))[0].detail == "the event cannot be encoded"


async def test_data_from_another_cluster(quick: Settings, sessions: Sessions, engine: AsyncEngine) -> None:
    """G100: after a restore into a cluster whose transaction ids are smaller, nothing that waits is skipped."""
    async with running_receiver() as receiver:
        await a_webhook(sessions, receiver.url)
        async with working(run_webhooks, quick):
            await happen(sessions, "bot", "v1")
            await receiver.until("bot", 4)
            await nothing_waits(sessions)
        await happen(sessions, "bot", "v2")
        # As if the ids of that cluster had been much greater.
        for change in (
            "UPDATE outbox SET xid = (xid::text::bigint + 1000000000)::text::xid8",
            "UPDATE webhooks SET cursor_xid = (cursor_xid::text::bigint + 1000000000)::text::xid8",
        ):
            await in_transaction(sessions, lambda session, change=change: session.execute(text(change)))  # type: ignore[misc]
        async with engine.begin() as connection:
            assert await adopt_cluster(connection)
        async with working(run_webhooks, quick):
            await happen(sessions, "bot", "v3")
            await receiver.until("bot", 8)
    assert receiver.sequences("bot") == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_result_under_an_old_claim_changes_nothing(sessions: Sessions, engine: AsyncEngine) -> None:
    """G100: neither an acceptance nor a failure, after another sender has the claim or a replay took it back."""
    webhook = await a_webhook(sessions, "https://receiver.example/")
    await happen(sessions, "bot", "v1")
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await hand_out(connection)

        async def claimed(lease: timedelta) -> deliveries.Claim:
            (one,) = await deliveries.claim(connection, {webhook.id: 4}, total=4, retries=False, lease=lease)
            return one

        first, second = await claimed(timedelta(0)), await claimed(timedelta(hours=1))
        assert (first.sequence, second.sequence, first.delivery) == (1, 1, second.delivery)
        assert await deliveries.claim(connection, {webhook.id: 4}, total=4, retries=False, lease=timedelta(0)) == []
        accepted, failed = Attempt("accepted", "", 0.1, 200), Attempt("failed", "", 0.1)
        for old, current in ((first, True), (second, False)):
            if not current:
                await replay(sessions, webhook.id, (0, 0))
            stored = [
                (
                    await in_transaction(sessions, partial(deliveries.settle_accepted, claimed=old, attempt=accepted))
                ).stored,
                (
                    await in_transaction(
                        sessions,
                        partial(deliveries.settle_failed, claimed=old, attempt=failed, wait=timedelta(hours=1)),
                    )
                ).stored,
            ]
            assert stored == [False, False]
        assert (await claimed(timedelta(hours=1))).sequence == 1
    assert await rows(sessions, "SELECT 1 FROM webhook_deliveries") == []


async def test_a_replay_for_an_agent_that_waits(quick: Settings, sessions: Sessions) -> None:
    """Its earlier events come again before the one that was refused, and nothing is skipped."""
    async with running_receiver(lambda received: 500 if received.sequence == 5 else 200) as receiver:
        webhook = await a_webhook(sessions, receiver.url)
        async with working(run_webhooks, quick):
            await happen(sessions, "bot", "v1", "v2")
            await receiver.until_seen(5)
            await replay(sessions, webhook.id, (0, 0))
            await eventually(
                lambda: _true(receiver.sequences("bot") == [1, 2, 3, 4, 1, 2, 3, 4]), "the first ones again"
            )
            receiver.answer = lambda _: 200
            await receiver.until("bot", 6)
    assert receiver.sequences("bot")[8:] == [5, 6]


async def test_how_long_events_wait_is_told_by_the_clock_that_dated_them(sessions: Sessions) -> None:
    """The database's, whatever the clock of the process says: before a worker has read them, and after."""

    async def waits() -> list[timedelta | None]:
        (state,) = await in_transaction(sessions, webhook_states)
        return [state.unread_for, state.waiting_for]

    await a_webhook(sessions, "https://receiver.test/")
    assert await waits() == [None, None]
    await happen(sessions, "bot", "v1")
    async with sessions.begin() as session:
        await session.execute(text("UPDATE outbox SET created_at = clock_timestamp() - interval '1 hour'"))
    unread, waiting = await waits()
    assert waiting is None
    assert unread == pytest.approx(timedelta(hours=1), abs=timedelta(minutes=1))
    async with sessions() as session:
        await hand_out(await session.connection())
        await session.commit()
    unread, waiting = await waits()
    assert unread is None
    assert waiting == pytest.approx(timedelta(hours=1), abs=timedelta(minutes=1))
