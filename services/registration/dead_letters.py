"""Dead letters, as messages to park."""

from collections.abc import Mapping
from typing import Any

from services.errors import DeadLettered, MessageTooLarge, PodiumError
from services.registration.batch import Unreadable, read_message
from services.registration.parked import Envelope, Refusal

DEATHS_HEADER = "x-death"
DELIVERIES_HEADER = "x-delivery-count"


def dead_letter(envelope: Envelope) -> Refusal:
    """The dead letter with its original routing key. Each gets its own row, since no registrar has decided it.

    The error is `MessageTooLarge` if a registrar has rejected it for its size.
    The headers keep `x-death`: https://www.rabbitmq.com/docs/dlx#effects
    """
    death = _last_death(envelope.headers)
    keys = death.get("routing-keys")
    key = str(keys[0]) if isinstance(keys, list) and keys else envelope.routing_key
    original = Envelope(key, envelope.body, envelope.headers)
    content = read_message(original).content
    error: PodiumError = DeadLettered(_reason(death, envelope.headers))
    if isinstance(content, Unreadable) and isinstance(content.error, MessageTooLarge):
        error = content.error
    return Refusal(
        original,
        error,
        content.message_id,
        content.name,
        content.deployment_id,
        alone=True,
    )


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get(DEATHS_HEADER)
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _reason(death: Mapping[str, Any], headers: Mapping[str, Any]) -> str:
    deliveries = headers.get(DELIVERIES_HEADER)
    times = f" after {deliveries} deliveries" if isinstance(deliveries, int) else ""
    return f"RabbitMQ stopped delivering this message{times} ({death.get('reason', 'no reason given')})."
