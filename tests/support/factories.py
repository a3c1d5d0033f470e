"""Test data: registrations as pods send them, and states as decisions read them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from msgspec.structs import replace
from pydantic_core import to_json

from contracts.messages import RegisterAgent, RegisterBuildRequest
from contracts.topology import registration_key
from services.domain.announcement import Announcement
from services.domain.state import AgentSnapshot, AgentState, DeploymentState
from services.registration.batch import Incoming, read_message
from services.registration.parked import Envelope

ADDRESS = "http://10.0.0.7:8000"
# The database's time in decisions that are tested without a database.
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
AGENT_ID = UUID("00000000-0000-4000-8000-00000000000a")


def a_body(name: str = "support-bot", *, deployment_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """A registration's JSON; keywords of the metadata go into it, and None omits a field."""
    metadata_names = {"docker_image", "rpc_path", "health_path", "error_style", "instance_id"}
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


def a_goodbye(
    deployment_id: str, instance_id: str, name: str = "support-bot", *, key: str | None = None, **fields: Any
) -> Incoming:
    """The goodbye of an instance as the registrar reads it from the queue."""
    body = {
        "kind": "deregister",
        "name": name,
        "deployment_id": deployment_id,
        "instance_id": instance_id,
        "message_id": str(uuid4()),
        "registered_at": datetime.now(UTC).isoformat(),
        **fields,
    }
    return read_message(Envelope(key or registration_key(name), to_json(body)))


def ago(seconds: float) -> str:
    """A time in the past, as pods write it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def an_id() -> UUID:
    """A new message id."""
    return uuid4()


def moment(seconds: float) -> datetime:
    """This many seconds after `NOW`; before it if negative."""
    return NOW + timedelta(seconds=seconds)


def an_agent(name: str = "support-bot", **fields: Any) -> AgentState:
    """An agent that has registered before."""
    known = {"id": AGENT_ID, "created_at": moment(-3600), "updated_at": moment(-3600), "event_seq": 1}
    return AgentState(name=name, **{**known, **fields})


def a_deployment(deployment_id: str = "v1", **fields: Any) -> DeploymentState:
    """A Ready preview of `an_agent()`, announced half an hour ago."""
    then = moment(-1800)
    ready = {
        "agent_id": AGENT_ID,
        "agent_name": "support-bot",
        "status": "Ready",
        "status_changed_at": then,
        "created_at": then,
        "acp_url": ADDRESS,
        "registered_at": then,
        "registered_message_id": UUID(int=1),
        "first_registered_at": then,
        "ready_at": then,
    }
    return DeploymentState(id=deployment_id, **{**ready, **fields})


def a_state(agent: AgentState | None = None, *deployments: DeploymentState, **fields: Any) -> AgentSnapshot:
    """The input of a decision at `NOW`: the agent, these deployments, and the pointer to the one in production."""
    agent = agent or an_agent()
    return AgentSnapshot(agent=agent, deployments={each.id: each for each in deployments}, **{"now": NOW, **fields})


def in_production(deployment_id: str = "v1", *, agent: AgentState | None = None, **fields: Any) -> AgentSnapshot:
    """An agent one of whose deployments has served for ten minutes."""
    since = moment(-600)
    agent = agent or an_agent()
    serving = replace(
        agent, production_deployment_id=deployment_id, generation=1, event_seq=max(agent.event_seq, 4), status="Ready"
    )
    deployment = a_deployment(deployment_id, **{"is_production": True, "promoted_at": since, **fields})
    return a_state(serving, deployment, last_cutover_at=since)


def an_announcement(*, seconds: float = -60, message_id: UUID | None = None, **fields: Any) -> Announcement:
    """A message as input of `decide`, published this many seconds after `NOW`."""
    request = a_registration(registered_at=moment(seconds).isoformat(), message_id=str(message_id or uuid4()), **fields)
    return Announcement(request, request.message_id, request.registered_at)


def event_types(state: AgentSnapshot) -> list[str]:
    """The types of a decision's events."""
    return [event.type.removeprefix("podium.").removesuffix(".v1") for event in state.events]


def causes(state: AgentSnapshot) -> list[str]:
    """The causes of a decision's cutovers."""
    return [row.cause for row in state.ledger]


def a_build(name: str = "support-bot", **fields: Any) -> Incoming:
    """The registration of a build, as the API passes it on."""
    return Incoming(Announcement(RegisterBuildRequest(name=name, **fields), uuid4(), None))


def over_http(name: str = "support-bot", **fields: Any) -> Incoming:
    """A registration over HTTP, as the API passes it on: with a new id and the time of the database."""
    return Incoming(Announcement(a_registration(name, **fields), uuid4(), None))
