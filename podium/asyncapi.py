"""The contracts for others, made from the models in `contracts/`: `python -m podium.asyncapi` writes them there.

An AsyncAPI 3.0 document, from a FastStream broker that describes and never connects, and one JSON Schema per message
and event. Specification: https://www.asyncapi.com/docs/reference/specification/v3.0.0
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
from contracts.messages import RegisterAgent

DOCUMENT = "asyncapi.json"
SCHEMAS = "schemas"
# Of the contracts, which outlive releases: it changes with a form that older readers cannot read.
CONTRACTS_VERSION = "1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

REGISTRATIONS = RabbitExchange(topology.REGISTRATIONS_EXCHANGE, type=ExchangeType.TOPIC, durable=True)
EVENTS = RabbitExchange(topology.EVENTS_EXCHANGE, type=ExchangeType.TOPIC, durable=True)

DESCRIPTION = (
    "Pods announce versions of agents, Podium tells what became of them and of every change of what serves. "
    "Everything is delivered at least once: announcements are told apart by `message_id`, and of events a consumer "
    "keeps the last `sequence` per `source` and drops what is not greater."
)
REGISTRATIONS_DESCRIPTION = (
    f"Publish to the topic exchange `{topology.REGISTRATIONS_EXCHANGE}`, persistent, mandatory and with confirms; "
    "repeat the same message, under the same `message_id`, until the broker has confirmed it. Podium reads them from "
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
HEADERS = {
    "type": "object",
    "properties": {
        "traceparent": {
            "type": "string",
            "pattern": TRACEPARENT_PATTERN,
            "description": "W3C trace context; it travels from the announcement to the events it causes.",
        }
    },
}


def main() -> None:
    """Write every file anew."""
    folder = Path(str(files("contracts")))
    (folder / SCHEMAS).mkdir(exist_ok=True)
    for stale in (folder / SCHEMAS).glob("*.json"):
        stale.unlink()
    for name, text in contract_files().items():
        (folder / name).write_text(text)


def contract_files() -> dict[str, str]:
    """What has to stand in `contracts/`: texts by path there, the same for the same models."""
    contents = {DOCUMENT: document(), **{f"{SCHEMAS}/{name}.json": schema for name, schema in schemas().items()}}
    return {name: json.dumps(content, indent=2, sort_keys=True) + "\n" for name, content in contents.items()}


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas by name: the announcement, the envelope, and the `data` of each event."""
    models: list[type[BaseModel]] = [RegisterAgent, CloudEvent, *EVENT_TYPES]
    return {model.__name__: {"$schema": DIALECT, **model.model_json_schema()} for model in models}


def document() -> dict[str, Any]:
    """The AsyncAPI document, as Podium sees it: it receives announcements and sends events."""
    specification = AsyncAPI(
        _describing_broker(),
        title="Podium",
        version=CONTRACTS_VERSION,
        description=DESCRIPTION,
        license={"name": "Apache-2.0"},
    ).to_specification()
    text = json.dumps(specification.to_jsonable())
    # FastStream's names of messages hold colons, which no key of the specification may.
    for suffix in (":SubscribeMessage", ":Message"):
        text = text.replace(f'{suffix}"', '"')
    return _completed(json.loads(text))


def _describing_broker() -> RabbitBroker:
    """One subscriber and a publisher per event type; nothing of it is ever started."""
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
        """What this does is the registrar's; here it only gives the message its model."""

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
    """The envelope with this type and this data."""
    type_field: Any = (Literal[event_type], ...)
    return create_model(f"{data.__name__}Event", __base__=CloudEvent, __doc__=data.__doc__, type=type_field, data=data)


def _completed(described: dict[str, Any]) -> dict[str, Any]:
    """The document with what FastStream has no words for: content types, headers, the exchange that pods publish to."""
    for channel in described["channels"].values():
        channel["parameters"] = AGENT_PARAMETER
        channel["servers"] = [{"$ref": "#/servers/rabbitmq"}]
    for operation in described["operations"].values():
        del operation["bindings"]["amqp"]["cc"]  # a routing key in the plural, and this one is a template
    registrations = described["channels"][RegisterAgent.__name__]
    events = described["channels"][next(iter(EVENT_TYPES)).__name__]
    exchange = {**events["bindings"]["amqp"]["exchange"], "name": topology.REGISTRATIONS_EXCHANGE}
    registrations["bindings"]["amqp"] = {**events["bindings"]["amqp"], "exchange": exchange}
    messages = described["components"]["messages"]
    for name, message in messages.items():
        del message["correlationId"]
        message |= {"name": name, "contentType": "application/json", "headers": HEADERS}
    for data, event_type in EVENT_TYPES.items():
        messages[data.__name__] |= {
            "contentType": CONTENT_TYPE,
            "bindings": {"amqp": {"messageType": event_type, "bindingVersion": "0.3.0"}},
        }
    return {**described, "servers": SERVERS}


if __name__ == "__main__":
    main()
