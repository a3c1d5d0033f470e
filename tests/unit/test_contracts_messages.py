import json
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import to_json

from contracts.messages import RegisterAgent, RegisterAgentRequest, RegisterBuildRequest
from tests.support.factories import a_body, a_registration


def read(**fields: Any) -> RegisterAgent:
    """Decode a queue message with these top-level fields."""
    return RegisterAgent.model_validate_json(json.dumps({**a_body(), **fields}))


@pytest.mark.parametrize("field", ["name", "acp_url", "message_id", "registered_at"])
def test_a_message_on_the_queue_needs_a_name_an_address_an_id_and_a_time(field: str) -> None:
    """G4: on the queue both halves of the pair are required, and so are name and address."""
    body = a_body()
    del body[field]
    with pytest.raises(ValidationError, match=field):
        RegisterAgent.model_validate_json(to_json(body))
    body[field] = None
    with pytest.raises(ValidationError, match=field):
        RegisterAgent.model_validate_json(to_json(body))


def test_over_http_a_name_and_an_address_are_enough() -> None:
    """Over HTTP the server assigns id and time; the request's values are ignored, even if malformed."""
    request = RegisterAgentRequest.model_validate(
        {"name": "bot", "acp_url": "http://h", "message_id": "not a uuid", "registered_at": "yesterday"}
    )
    assert request.deployment_id is None
    assert not hasattr(request, "message_id")


def test_unknown_fields_are_ignored() -> None:
    """A newer pod may send fields that this version does not know."""
    message = read(version=2, principal_context={"x": 1}, acp_url="http://h")
    assert "version" not in message.model_dump()


@pytest.mark.parametrize("metadata", [None, {}])
def test_a_message_without_metadata_comes_from_a_legacy_agent(metadata: dict[str, Any] | None) -> None:
    """`registration_metadata` may be null or empty; then there is no deployment id."""
    assert read(registration_metadata=metadata).deployment_id is None


def test_unknown_metadata_is_kept_unchanged() -> None:
    """Unknown fields survive, also nested ones, and fields that were not sent are not added."""
    facts = {"deployment_id": "v1", "git": {"commit": "abc", "dirty": False}, "built": 1.5, "none": None}
    metadata = read(registration_metadata=facts).registration_metadata
    assert metadata is not None
    assert metadata.facts() == facts


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Support Bot"},
        {"name": 7},
        {"acp_url": "10.0.0.7:8000"},
        {"acp_url": None},
        {"acp_type": "magic"},
        {"agent_input_type": "video"},
        {"description": "a\x00b"},
        {"agent_id": "\x00"},
        {"message_id": "7"},
        {"registered_at": "2026-07-01T12:00:00"},
        {"registration_metadata": []},
        {"registration_metadata": {"deployment_id": "no good"}},
        {"registration_metadata": {"deployment_id": 7}},
        {"registration_metadata": {"docker_image": "two words"}},
        {"registration_metadata": {"rpc_path": "/a?b"}},
        {"registration_metadata": {"error_style": "loud"}},
        {"registration_metadata": {"note": "a\x00b"}},
        {"registration_metadata": {"note": {"a\x00b": 1}}},
    ],
    ids=str,
)
def test_the_error_names_the_invalid_field(fields: dict[str, Any]) -> None:
    """The error location starts with the field."""
    (field,) = fields
    with pytest.raises(ValidationError) as refused:
        read(**fields)
    assert refused.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 5000])
def test_numbers_that_cannot_be_stored_are_refused(number: str) -> None:
    """Infinity, NaN and huge integers are refused before they reach the database."""
    body = to_json({**a_body(), "registration_metadata": {"x": 0}}).replace(b'{"x":0}', b'{"x":%s}' % number.encode())
    with pytest.raises(ValidationError):
        RegisterAgent.model_validate_json(body)


def test_a_build_is_checked_as_a_registration_is() -> None:
    """A build's metadata is refused if PostgreSQL cannot store it."""
    assert RegisterBuildRequest(name="bot", registration_metadata=None).registration_metadata is None
    with pytest.raises(ValidationError, match="NUL"):
        RegisterBuildRequest(name="bot", registration_metadata={"x": ["\x00"]})


def test_a_message_survives_a_json_round_trip() -> None:
    """The registrar reads the same message that a pod published."""
    message = a_registration(deployment_id="v1", docker_image="bot:1", description="Ünï", git={"commit": "a"})
    assert RegisterAgent.model_validate_json(message.model_dump_json(exclude_unset=True)) == message
