"""Parked messages: listed, read, sent again and dropped."""

from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractConnection
from pydantic import SecretStr
from pydantic_core import from_json, to_json
from sqlalchemy import text

from api.routes.parked import republish
from contracts import topology
from services.registration import parked as parking
from services.registration.batch import read_message, register_batch
from services.registration.dead_letters import dead_letter
from services.registration.parked import Envelope
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import refused_address
from tests.integration.workers.conftest import working
from tests.support.factories import a_body
from tests.support.waiting import eventually_rows
from workers.runner import run_registrar


async def park(sessions: Sessions, body: bytes, key: str = "agent.bot", **headers: Any) -> None:
    """Park this message, as a registrar does."""
    await in_transaction(sessions, partial(register_batch, batch=[read_message(Envelope(key, body, headers))]))


async def only_one(api: Api) -> dict[str, Any]:
    """The only parked message."""
    (found,) = (await api.get("/parked")).json
    message: dict[str, Any] = found
    return message


async def test_parked_messages_are_listed_and_read(api: Api, sessions: Sessions) -> None:
    """Lists are newest first, by agent and in pages; a single message has its body as text or base64."""
    await park(sessions, b"no JSON", traceparent="00-1-2-3")
    await park(sessions, b"\xff", key="agent.other")
    listed = (await api.get("/parked")).json
    assert [each["agent_name"] for each in listed] == ["other", "bot"]
    assert [each["reason"] for each in listed] == ["malformed", "malformed"]
    assert (await api.get("/parked?limit=1&page_number=2")).json == listed[1:]
    assert (await api.get("/parked?agent=bot")).json == listed[1:]
    other, bot = [(await api.get(f"/parked/{each['id']}")).json for each in listed]
    assert (other["body"], other["body_encoding"]) == ("/w==", "base64")
    assert (bot["body"], bot["body_encoding"], bot["headers"]) == ("no JSON", "utf-8", {"traceparent": "00-1-2-3"})


async def test_a_retry_is_published_and_the_message_stays_parked(
    api: Api, sessions: Sessions, settings: Settings, broker: AbstractConnection
) -> None:
    """It has a new message id, the original time and trace; the message stays parked until it is dropped."""
    body = a_body("bot", deployment_id="v1")
    lost = dead_letter(Envelope("agent.bot", to_json(body), {"traceparent": "00-1-2-3", "x-delivery-count": 7}))
    await in_transaction(sessions, partial(parking.park, refusals=[lost]))
    found = await only_one(api)
    sent = await api.post(f"/parked/{found['id']}/retry")
    assert sent.status == 200, sent.body
    queue = await (await broker.channel()).get_queue(topology.REGISTRATIONS_QUEUE)
    message = await queue.get()
    assert (message.headers["x-podium-retry-of"], message.headers["traceparent"]) == (found["id"], "00-1-2-3")
    assert message.routing_key == "agent.bot"
    again = from_json(message.body)
    assert again["message_id"] == message.message_id == sent.json["retry_message_id"] != body["message_id"]
    assert again == {**body, "message_id": again["message_id"]}
    await message.nack(requeue=True)
    async with working(run_registrar, settings):
        (row,) = await eventually_rows(sessions, "SELECT outcome, message_id FROM registrations")
    assert (row.outcome, str(row.message_id)) == ("Registered", again["message_id"])
    assert await only_one(api) == {**found, "retried_at": sent.json["retried_at"]}


async def test_a_retry_whose_answer_is_lost_may_be_repeated(
    api: Api, sessions: Sessions, broker: AbstractConnection
) -> None:
    """Until it is marked as sent, every retry has the same message id, so it has one effect; later a new one."""
    await park(sessions, b"{}")
    found = await only_one(api)
    ids = []
    for marked in (False, True, True):
        ids.append((await api.post(f"/parked/{found['id']}/retry")).json["retry_message_id"])
        if not marked:
            async with sessions.begin() as session:
                await session.execute(text("UPDATE parked SET retried_at = NULL"))
    assert ids[0] == ids[1] != ids[2]
    queue = await (await broker.channel()).get_queue(topology.REGISTRATIONS_QUEUE)
    sent = [await queue.get(no_ack=True) for _ in ids]
    assert [from_json(message.body)["message_id"] for message in sent] == ids


async def test_a_message_dropped_during_its_retry_is_still_sent(
    api: Api, sessions: Sessions, broker: AbstractConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both requests succeed: the answer names the sent message, and nothing is parked."""
    await park(sessions, b"{}")
    found = await only_one(api)

    async def dropped_meanwhile(*sending: Any) -> None:
        await republish(*sending)
        await api.delete(f"/parked/{found['id']}")

    monkeypatch.setattr("api.routes.parked.republish", dropped_meanwhile)
    sent = await api.post(f"/parked/{found['id']}/retry")
    assert (sent.status, bool(sent.json["retried_at"])) == (200, True)
    queue = await (await broker.channel()).get_queue(topology.REGISTRATIONS_QUEUE)
    assert from_json((await queue.get(no_ack=True)).body)["message_id"] == sent.json["retry_message_id"]
    assert (await api.get("/parked")).json == []


async def test_a_retry_without_a_time_is_dated_by_its_parking(
    api: Api, sessions: Sessions, broker: AbstractConnection
) -> None:
    """A message without a time is applied with the time at which it was received."""
    await park(sessions, b'{"name": "bot", "acp_url": "http://10.0.0.7"}')
    found = await only_one(api)
    assert (await api.post(f"/parked/{found['id']}/retry")).status == 200
    queue = await (await broker.channel()).get_queue(topology.REGISTRATIONS_QUEUE)
    message = await queue.get(no_ack=True)
    assert from_json(message.body)["registered_at"].replace("+00:00", "Z") == found["received_at"]


async def test_a_retry_is_refused_where_it_cannot_be_sent(serve: Serve, sessions: Sessions) -> None:
    """409 if the body is not a JSON object; 503 without a broker, and the message is not marked as sent."""
    async with refused_address() as nowhere:
        api = await serve(amqp_url=SecretStr(nowhere.replace("http", "amqp")))
        await park(sessions, b"[]")
        parked = await only_one(api)
        (await api.post(f"/parked/{parked['id']}/retry")).problem(409, "not-retryable")
        await api.delete(f"/parked/{parked['id']}")
        await park(sessions, b"{}")
        parked = await only_one(api)
        refused = await api.post(f"/parked/{parked['id']}/retry")
    refused.problem(503, "broker-unavailable")
    assert refused.headers["retry-after"]
    unknown = await serve(amqp_url=SecretStr(""))
    (await unknown.post(f"/parked/{parked['id']}/retry")).problem(503, "broker-unavailable")
    assert (await only_one(api))["retried_at"] is None


async def test_a_message_with_an_impossible_routing_key_is_not_sent_again(api: Api, sessions: Sessions) -> None:
    """409: a key of bytes that are not UTF-8 is stored as text that is longer than any key may be."""
    await park(sessions, b"{}", key=(b"agent." + b"\xff" * 249).decode(errors="replace"))
    parked = await only_one(api)
    (await api.post(f"/parked/{parked['id']}/retry")).problem(409, "not-retryable")


async def test_a_retry_that_no_queue_takes_is_refused(api: Api, sessions: Sessions, broker: AbstractConnection) -> None:
    """The message is published as mandatory, so an unroutable one is not lost."""
    await park(sessions, b"{}")
    parked = await only_one(api)
    await (await broker.channel()).queue_delete(topology.REGISTRATIONS_QUEUE)
    (await api.post(f"/parked/{parked['id']}/retry")).problem(503, "broker-unavailable")
    assert (await only_one(api))["retried_at"] is None


async def test_only_dropping_removes_a_message(api: Api, sessions: Sessions) -> None:
    """A second drop, and a drop of an unknown message, are 404."""
    await park(sessions, b"{}")
    parked = await only_one(api)
    assert (await api.delete(f"/parked/{parked['id']}")).status == 200
    assert (await api.get("/parked")).json == []
    for unknown in (parked["id"], uuid4(), "no-uuid", uuid4().hex, "%00"):
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/retry")):
            (await api.call(method, f"/parked/{unknown}{suffix}")).problem(404, "parked-not-found")
    (await api.get("/parked?agent=Not%20A%20Name")).problem(400, "invalid-request", "agent")
    (await api.get("/parked?limit=0")).problem(400, "invalid-request", "limit")
