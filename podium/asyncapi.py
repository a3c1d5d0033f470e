"""The published contracts, generated from the models: `python -m podium.asyncapi` writes them to `contracts/`.

They are an AsyncAPI 3.0 document, from a FastStream broker that never connects, and one JSON Schema per message and
event. Specification: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from faststream import AckPolicy
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas import QueueType
from faststream.specification import AsyncAPI
from pydantic import BaseModel, create_model

from contracts import topology
from contracts.events import CONTENT_TYPE, EVENT_TYPES, CloudEvent, EventData, EventType
from contracts.fields import AGENT_NAME_PATTERN, TRACEPARENT_PATTERN
from contracts.messages import DeregisterInstance, RegisterAgent
from contracts.signatures import SIGNATURE_HEADER, SIGNATURE_PATTERN

DOCUMENT = "asyncapi.json"
SCHEMAS = "schemas"
# Independent of the release: it changes when older readers cannot read the new format.
CONTRACTS_VERSION = "1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

REGISTRATIONS = RabbitExchange(topology.REGISTRATIONS_EXCHANGE, type=ExchangeType.TOPIC, durable=True)
EVENTS = RabbitExchange(topology.EVENTS_EXCHANGE, type=ExchangeType.TOPIC, durable=True)

DESCRIPTION = (
    "Pods announce versions of agents. Podium publishes an event for each change of a deployment and of what serves. "
    "Messages and events are delivered at least once. Podium recognises a repeated announcement by its `message_id`. "
    "A consumer of events stores the last `sequence` per `source` and ignores events that are not greater."
)
REGISTRATIONS_DESCRIPTION = (
    f"Publish to the topic exchange `{topology.REGISTRATIONS_EXCHANGE}`, persistent, mandatory and with confirms; "
    "repeat the same message, with the same `message_id`, until the broker confirms it. Podium reads them from "
    f"the quorum queue `{topology.REGISTRATIONS_QUEUE}`, bound by `{topology.REGISTRATIONS_BINDING}`."
)
AGENT_PARAMETER = {"agent": {"description": f"Name of the agent: {AGENT_NAME_PATTERN}"}}
SERVERS = {
    "rabbitmq": {
        "host": "{host}:{port}",
        "protocol": "amqp",
        "protocolVersion": "0.9.1",
        "description": "The RabbitMQ that Podium works with (3.10 or later).",
        "variables": {"host": {"default": "localhost"}, "port": {"default": "5672"}},
    }
}
TRACE_HEADERS = {
    "traceparent": {
        "type": "string",
        "pattern": TRACEPARENT_PATTERN,
        "description": "W3C trace context; it travels from the announcement to the events it causes.",
    }
}
EVENT_HEADERS = {"type": "object", "properties": TRACE_HEADERS}
POD_HEADERS = {
    "type": "object",
    "properties": {
        **TRACE_HEADERS,
        SIGNATURE_HEADER: {
            "type": "string",
            "pattern": SIGNATURE_PATTERN,
            "description": "`v1=` and, in lower-case hexadecimal, the HMAC-SHA256 with the agent's signing key over "
            "the `message_id` in its canonical form (lower case, with hyphens), a line feed and the body. Required "
            "where PODIUM_REQUIRE_SIGNED_ANNOUNCEMENTS is set.",
        },
    },
}


def main() -> None:
    """Write all files, and delete schemas that no longer exist."""
    folder = Path(str(files("contracts")))
    (folder / SCHEMAS).mkdir(exist_ok=True)
    for old in (folder / SCHEMAS).glob("*.json"):
        old.unlink()
    for name, text in contract_files().items():
        (folder / name).write_text(text)


def contract_files() -> dict[str, str]:
    """The text of each generated file, by its path in `contracts/`. The same models give the same text."""
    contents = {DOCUMENT: document(), **{f"{SCHEMAS}/{name}.json": schema for name, schema in schemas().items()}}
    return {name: json.dumps(content, indent=2, sort_keys=True) + "\n" for name, content in contents.items()}


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas by name: the messages of pods, the event envelope, and the `data` of each event type."""
    models: list[type[BaseModel]] = [RegisterAgent, DeregisterInstance, CloudEvent, *EVENT_TYPES]
    return {model.__name__: {"$schema": DIALECT, **model.model_json_schema()} for model in models}


def document() -> dict[str, Any]:
    """The AsyncAPI document from Podium's side: it receives announcements and sends events."""
    specification = AsyncAPI(
        _broker(),
        title="Podium",
        version=CONTRACTS_VERSION,
        description=DESCRIPTION,
        license={"name": "Apache-2.0"},
    ).to_specification()
    text = json.dumps(specification.to_jsonable())
    # FastStream puts colons into the names of messages; the specification forbids them in keys.
    for suffix in (":SubscribeMessage", ":Message"):
        text = text.replace(f'{suffix}"', '"')
    return _complete(json.loads(text))


def _broker() -> RabbitBroker:
    """A broker with one subscriber, and one publisher per event type. It is never started."""
    broker = RabbitBroker("amqp://localhost:5672/", logger=None)
    queue = RabbitQueue(
        topology.REGISTRATIONS_QUEUE,
        routing_key=topology.registration_key("{agent}"),
        queue_type=QueueType.QUORUM,
        durable=True,
    )

    @broker.subscriber(
        queue,
        REGISTRATIONS,
        title=RegisterAgent.__name__,
        description=REGISTRATIONS_DESCRIPTION,
        ack_policy=AckPolicy.MANUAL,
    )
    async def register_agent(message: RegisterAgent) -> None:
        """Give the message its model; the registrar handles it."""

    @broker.subscriber(
        queue,
        REGISTRATIONS,
        title=DeregisterInstance.__name__,
        description=f"{DeregisterInstance.__doc__} {REGISTRATIONS_DESCRIPTION}",
        ack_policy=AckPolicy.MANUAL,
    )
    async def deregister_instance(message: DeregisterInstance) -> None:
        """Give the message its model; the registrar handles it."""

    for data, event_type in EVENT_TYPES.items():
        broker.publisher(
            exchange=EVENTS,
            routing_key=topology.event_key(event_type, "{agent}"),
            title=data.__name__,
            description=data.__doc__,
            schema=_event_model(data, event_type),
            mandatory=False,
            persist=True,
        )
    return broker


def _event_model(data: type[EventData], event_type: EventType) -> type[BaseModel]:
    """The event envelope with this `type` and this `data`."""
    type_field: Any = (Literal[event_type], ...)
    return create_model(f"{data.__name__}Event", __base__=CloudEvent, __doc__=data.__doc__, type=type_field, data=data)


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add what FastStream cannot express: content types, headers, and the exchange that pods publish to."""
    for channel in document["channels"].values():
        channel["parameters"] = AGENT_PARAMETER
        channel["servers"] = [{"$ref": "#/servers/rabbitmq"}]
    for operation in document["operations"].values():
        del operation["bindings"]["amqp"]["cc"]  # FastStream writes the routing key there, but this one is a template
    events = document["channels"][next(iter(EVENT_TYPES)).__name__]
    exchange = {**events["bindings"]["amqp"]["exchange"], "name": topology.REGISTRATIONS_EXCHANGE}
    for model in (RegisterAgent, DeregisterInstance):
        bindings = document["channels"][model.__name__]["bindings"]
        bindings["amqp"] = {**events["bindings"]["amqp"], "exchange": exchange}
    messages = document["components"]["messages"]
    for name, message in messages.items():
        del message["correlationId"]
        headers = POD_HEADERS if name in {RegisterAgent.__name__, DeregisterInstance.__name__} else EVENT_HEADERS
        message |= {"name": name, "contentType": "application/json", "headers": headers}
    for data, event_type in EVENT_TYPES.items():
        messages[data.__name__] |= {
            "contentType": CONTENT_TYPE,
            "bindings": {"amqp": {"messageType": event_type, "bindingVersion": "0.3.0"}},
        }
    return {**document, "servers": SERVERS}


if __name__ == "__main__":
    main()
