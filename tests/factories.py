"""What tests are made of: registrations as pods would send them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json

from contracts.messages import RegisterAgent
from contracts.topology import registration_key
from services.parking import Envelope
from services.registration import Incoming, read_message

ADDRESS = "http://10.0.0.7:8000"


def a_body(name: str = "support-bot", *, deployment_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """A registration's JSON; keywords that belong to the metadata go there, None leaves a field out."""
    metadata_names = {"docker_image", "rpc_path", "health_path", "error_style"}
    metadata = {key: fields.pop(key) for key in metadata_names & fields.keys()}
    if deployment_id is not None:
        metadata["deployment_id"] = deployment_id
    body = {
        "name": name,
        "acp_url": ADDRESS,
        "message_id": str(uuid4()),
        "registered_at": datetime.now(UTC).isoformat(),
        "registration_metadata": {**metadata, **fields.pop("registration_metadata", {})} or None,
        **fields,
    }
    return {key: value for key, value in body.items() if value is not None}


def a_registration(name: str = "support-bot", **fields: Any) -> RegisterAgent:
    """The message that a pod publishes."""
    return RegisterAgent.model_validate_json(to_json(a_body(name, **fields)))


def incoming(name: str = "support-bot", *, key: str | None = None, **fields: Any) -> Incoming:
    """The message as the registrar reads it from the queue."""
    return read_message(Envelope(key or registration_key(name), to_json(a_body(name, **fields))))


def ago(seconds: float) -> str:
    """A moment in the past, as pods write it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def an_id() -> UUID:
    """A fresh message id."""
    return uuid4()
