"""Names and arguments of everything Podium declares on the broker.

Quorum queues are built to work alike on RabbitMQ 3.10 and 4.x, so every argument whose default differs is explicit.
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
# High, since a crash loop counts against every message in hand: restarts must not park innocent neighbours.
DELIVERY_LIMIT = 100
# RabbitMQ 4 applies 20 where nothing is said, and 3.10 knows no way to say "none".
PARKED_DELIVERY_LIMIT = 1_000_000_000

_AGENT_KEY_PREFIX = "agent."

QueueArguments = dict[str, Any]


def registration_key(agent_name: str) -> str:
    """Routing key under which an agent's pods announce themselves."""
    return f"{_AGENT_KEY_PREFIX}{agent_name}"


def agent_of_key(routing_key: str) -> str | None:
    """The agent that a registration's routing key names; None if it names none that could exist."""
    name = routing_key.removeprefix(_AGENT_KEY_PREFIX)
    return name if name != routing_key and re.fullmatch(AGENT_NAME_PATTERN, name) else None


def event_key(event_type: str, agent_name: str) -> str:
    """Routing key of an event: `deployment.promoted.support-bot` for `podium.deployment.promoted.v1`."""
    entity, event = event_type.split(".")[1:3]
    return f"{entity}.{event}.{agent_name}"


def registrations_arguments(
    max_length: int = REGISTRATIONS_MAX_LENGTH, delivery_limit: int = DELIVERY_LIMIT
) -> QueueArguments:
    """Arguments of the registrations queue: what the broker gives up on goes to the parked queue, at least once."""
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
    """Arguments of the parked queue, whose delivery limit is out of reach: what is counted out here would be lost."""
    return {
        "x-queue-type": "quorum",
        "x-max-length": PARKED_MAX_LENGTH,
        "x-overflow": "reject-publish",
        "x-delivery-limit": PARKED_DELIVERY_LIMIT,
    }
