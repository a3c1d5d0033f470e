import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from contracts.events import CONTENT_TYPE, EVENT_TYPES, EventData
from contracts.topology import REGISTRATIONS_EXCHANGE, event_key
from podium.asyncapi import DOCUMENT, SCHEMAS, contract_files, document, schemas
from tests.support.factories import a_body
from tests.unit.test_contracts_snapshots import EXAMPLES, on_the_wire

CONTRACTS = Path(str(files("contracts")))
# What may be escaped in a regular expression of ECMA-262 in unicode mode, which JSON Schema prescribes.
PORTABLE_ESCAPES = re.compile(r"\\(?:[dDwWsSbBnrtv^$\\.*+?()\[\]{}|/-]|x[0-9a-f]{2})")


def parts(node: Any, name: str) -> Iterator[Any]:
    """Every value that stands under this name, however deep."""
    if isinstance(node, dict):
        yield from ([node[name]] if name in node else [])
        for value in node.values():
            yield from parts(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from parts(value, name)


def test_the_committed_contracts_are_those_of_the_models() -> None:
    """The committed files match the models."""
    committed = {
        str(path.relative_to(CONTRACTS)): path.read_text()
        for path in [CONTRACTS / DOCUMENT, *(CONTRACTS / SCHEMAS).iterdir()]
        if path.exists()
    }
    assert committed == contract_files(), (
        "\ncontracts/asyncapi.json or contracts/schemas do not match the models; regenerate them and have the "
        "difference reviewed:\n\n    make contracts\n"
    )


def test_generating_the_contracts_is_deterministic() -> None:
    """The same models give the same bytes, so a difference always shows a changed model."""
    assert contract_files() == contract_files()


def test_every_reference_of_the_document_resolves() -> None:
    """Each `$ref` points to an existing node."""
    described = document()
    for reference in parts(described, "$ref"):
        node = described
        for step in str(reference).removeprefix("#/").split("/"):
            assert step in node, reference
            node = node[step]


def test_every_key_of_the_document_is_one_that_the_specification_allows() -> None:
    """Code generators turn these keys into names, and refuse other characters."""
    described = document()
    named = [described["channels"], described["operations"], described["servers"], *described["components"].values()]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", key) for keys in named for key in keys)


def test_the_document_says_where_pods_publish_their_announcements() -> None:
    """Podium receives two kinds of messages, on the exchange and under the keys that pods use."""
    described = document()
    received = [each for each in described["operations"].values() if each["action"] == "receive"]
    names = ["DeregisterInstance", "RegisterAgent"]
    assert sorted(each["channel"]["$ref"] for each in received) == [f"#/channels/{name}" for name in names]
    for name in names:
        channel = described["channels"][name]
        assert channel["address"] == "agent.{agent}"
        assert channel["bindings"]["amqp"]["exchange"]["name"] == REGISTRATIONS_EXCHANGE
        assert described["components"]["messages"][name]["contentType"] == "application/json"


@pytest.mark.parametrize("data", EVENT_TYPES, ids=lambda data: data.__name__)
def test_the_document_says_how_each_event_arrives(data: type[EventData]) -> None:
    """Podium sends each type of event under its own key, as a CloudEvent with this type and this data."""
    described = document()
    name, event_type = data.__name__, EVENT_TYPES[data]
    assert described["operations"][name]["action"] == "send"
    assert described["channels"][name]["address"] == event_key(event_type, "{agent}")
    message = described["components"]["messages"][name]
    assert message["contentType"] == CONTENT_TYPE
    assert message["bindings"]["amqp"]["messageType"] == event_type
    payload = described["components"]["schemas"][f"{name}Event"]["properties"]
    assert payload["type"]["const"] == event_type
    assert payload["data"]["$ref"] == f"#/components/schemas/{name}"


@pytest.mark.parametrize("data", EXAMPLES, ids=lambda data: type(data).__name__)
def test_an_event_on_the_wire_is_valid_against_the_schemas(data: EventData) -> None:
    """A consumer that validates events against the published schemas accepts the events of Podium."""
    event, published = on_the_wire(data), schemas()
    Draft202012Validator(published["CloudEvent"]).validate(event)
    Draft202012Validator(published[type(data).__name__]).validate(event["data"])
    described = document()
    whole = {"$ref": f"#/components/schemas/{type(data).__name__}Event", "components": described["components"]}
    Draft202012Validator(whole).validate(event)


def test_a_pod_can_check_its_announcement_against_the_schema() -> None:
    """The schema accepts a valid announcement and refuses an invalid name."""
    validator = Draft202012Validator(schemas()["RegisterAgent"])
    assert validator.is_valid(a_body(deployment_id="v1", docker_image="registry/bot:1"))
    assert not validator.is_valid(a_body() | {"name": "No Agent"})


def test_patterns_are_portable() -> None:
    """Validators in other languages can compile every pattern: it has only portable escapes."""
    texts = [json.loads(text) for text in contract_files().values()]
    patterns = {str(pattern) for text in texts for pattern in parts(text, "pattern")}
    assert patterns
    for pattern in patterns:
        assert "\\" not in PORTABLE_ESCAPES.sub("", pattern), pattern
