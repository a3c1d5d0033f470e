"""Names and arguments of the exchanges and queues that Podium declares on RabbitMQ.

Every queue argument whose default differs between RabbitMQ 3.10 and 4.x is explicit, so queues behave the same on both.
"""

import re
from typing import Any

from contracts.fields import AGENT_NAME_PATTERN

REGISTRATIONS_EXCHANGE = "podium.registrations"
REGISTRATIONS_QUEUE = "podium.registrations"
REGISTRATIONS_BINDING = "agent.*"
PARKED_QUEUE = "podium.parked"
EVENTS_EXCHANGE = "podium.events"

REGISTRATIONS_MAX_LENGTH = 1_000_000
PARKED_MAX_LENGTH = 1_000_000
# High, because a crash counts against every unacknowledged message: restarts must not park valid messages.
DELIVERY_LIMIT = 100
# RabbitMQ 4 defaults to 20, and 3.10 cannot express "no limit".
PARKED_DELIVERY_LIMIT = 1_000_000_000

_AGENT_KEY_PREFIX = "agent."

QueueArguments = dict[str, Any]


def registration_key(agent_name: str) -> str:
    """The routing key of an agent's announcements."""
    return f"{_AGENT_KEY_PREFIX}{agent_name}"


def agent_of_key(routing_key: str) -> str | None:
    """The agent name in an announcement's routing key; None if the key is malformed."""
    name = routing_key.removeprefix(_AGENT_KEY_PREFIX)
    return name if name != routing_key and re.fullmatch(AGENT_NAME_PATTERN, name) else None


def event_key(event_type: str, agent_name: str) -> str:
    """The routing key of an event: `deployment.promoted.support-bot` for `podium.deployment.promoted.v1`."""
    entity, event = event_type.split(".")[1:3]
    return f"{entity}.{event}.{agent_name}"


def registrations_arguments(
    max_length: int = REGISTRATIONS_MAX_LENGTH, delivery_limit: int = DELIVERY_LIMIT
) -> QueueArguments:
    """Arguments of the registrations queue. Messages over the delivery limit are dead-lettered to the parked queue."""
    return {
        "x-queue-type": "quorum",
        "x-max-length": max_length,
        "x-overflow": "reject-publish",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": PARKED_QUEUE,
        "x-dead-letter-strategy": "at-least-once",
    }


def parked_arguments() -> QueueArguments:
    """Arguments of the parked queue. Its delivery limit is unreachable, because a message over it would be lost."""
    return {
        "x-queue-type": "quorum",
        "x-max-length": PARKED_MAX_LENGTH,
        "x-overflow": "reject-publish",
        "x-delivery-limit": PARKED_DELIVERY_LIMIT,
    }
