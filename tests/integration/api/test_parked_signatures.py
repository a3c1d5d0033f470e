"""Retries of parked messages where announcements must be signed."""

from functools import partial
from typing import Any

from aio_pika.abc import AbstractConnection
from pydantic_core import from_json, to_json

from contracts.signatures import SIGNATURE_HEADER
from services.registration import parked as parking
from services.registration.dead_letters import dead_letter
from services.registration.parked import Envelope
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.signing import signature_headers
from tests.support.waiting import eventually_rows, rows
from workers.runner import run_registrar


async def park(sessions: Sessions, body: dict[str, Any], headers: dict[str, Any]) -> None:
    """Park this message as one that the broker gave up on."""
    lost = dead_letter(Envelope("agent.bot", to_json(body), headers))
    await in_transaction(sessions, partial(parking.park, refusals=[lost]))


async def only_id(api: Api) -> str:
    """The id of the only parked message."""
    (found,) = (await api.get("/parked")).json
    return str(found["id"])


async def test_a_retry_of_a_signed_message_is_signed(
    serve: Serve, sessions: Sessions, settings: Settings, broker: AbstractConnection
) -> None:
    """G79: Its new id and body get a new signature, so that it is applied."""
    del broker  # it has declared the queue
    strict = settings.model_copy(update={"require_signed_announcements": True})
    api = await serve(require_signed_announcements=True)
    body = a_body("bot", deployment_id="v1")
    await park(sessions, body, signature_headers(settings, "bot", body))
    retried = await api.post(f"/parked/{await only_id(api)}/retry")
    assert (retried.status, retried.json["signed"]) == (200, True)
    async with working(run_registrar, strict):
        (row,) = await eventually_rows(sessions, "SELECT outcome, message_id FROM registrations")
    assert (row.outcome, str(row.message_id)) == ("Registered", retried.json["retry_message_id"])


async def test_an_unsigned_message_is_retried_only_on_purpose(
    serve: Serve, sessions: Sessions, settings: Settings, broker: AbstractConnection
) -> None:
    """G79: 409 for it, and for one whose signature is of another body, unless `accept_unsigned` is true."""
    strict = settings.model_copy(update={"require_signed_announcements": True})
    api = await serve()
    body = a_body("bot", deployment_id="v1")
    async with working(run_registrar, strict):
        await publish(broker, {**body, "acp_url": "http://10.6.6.6"}, headers=signature_headers(settings, "bot", body))
        await eventually_rows(sessions, "SELECT 1 FROM parked WHERE reason = 'not-signed'")
        route = f"/parked/{await only_id(api)}/retry"
        (await api.post(route)).problem(409, "retry-not-signed")
        (await api.post(route, json={"accept_unsigned": False})).problem(409, "retry-not-signed")
        (await api.post(route, json={"accept_unsigned": 1})).problem(400, "invalid-request", "accept_unsigned")
        assert not await rows(sessions, "SELECT 1 FROM parked WHERE retried_at IS NOT NULL")
        retried = await api.post(route, json={"accept_unsigned": True})
        assert (retried.status, retried.json["signed"]) == (200, True)
        (row,) = await eventually_rows(sessions, "SELECT outcome FROM registrations")
    assert row.outcome == "Registered"
    (entry,) = await rows(sessions, "SELECT details FROM audit WHERE action = 'parked.retried'")
    assert entry.details == {"accept_unsigned": True}


async def test_the_api_refuses_what_workers_would_park(serve: Serve, sessions: Sessions) -> None:
    """G79: Where the API has the setting too, a dead letter without a signature gets 409 as well."""
    api = await serve(require_signed_announcements=True)
    await park(sessions, a_body("bot"), {})
    (await api.post(f"/parked/{await only_id(api)}/retry")).problem(409, "retry-not-signed")


async def test_where_no_signature_is_required_a_retry_has_none(
    api: Api, sessions: Sessions, broker: AbstractConnection
) -> None:
    """A message that came without one goes out without one."""
    await park(sessions, a_body("bot"), {})
    retried = await api.post(f"/parked/{await only_id(api)}/retry")
    assert (retried.status, retried.json["signed"]) == (200, False)
    queue = await (await broker.channel()).get_queue("podium.registrations")
    message = await queue.get(no_ack=True)
    assert SIGNATURE_HEADER not in message.headers
    assert from_json(message.body)["message_id"] == retried.json["retry_message_id"]
