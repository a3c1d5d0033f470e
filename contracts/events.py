"""What Podium tells the world: CloudEvents 1.0 in structured JSON, one type per fact.

Consumers keep the last `sequence` per `source` and drop what is not greater: delivery is at least once, in order.
Specification: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from contracts.fields import AcpType, Cause

CONTENT_TYPE = "application/cloudevents+json"
SEQUENCE_DIGITS = 20


class EventData(BaseModel):
    """What every event says: whose it is."""

    model_config = ConfigDict(frozen=True)

    agent_id: str
    agent_name: str


class AgentRegistered(EventData):
    """An agent came to be, or what it says of itself changed; never sent for a repetition."""

    description: str
    acp_type: AcpType
    acp_url: str | None = Field(description="What serves after this event; null while nothing does.")


class AgentDeleted(EventData):
    """An agent was deleted; its name is free."""

    acp_url: None = Field(default=None, description="Nothing serves any more.")
    deleted_at: datetime


class DeploymentCreated(EventData):
    """A version is known, by announcement or because it was created ahead of its pod."""

    deployment_id: str
    docker_image: str | None


class DeploymentReady(EventData):
    """A version can be reached, or a serving version can be reached at a new address."""

    deployment_id: str
    docker_image: str | None
    acp_url: str
    rpc_path: str
    is_production: bool


class DeploymentFailed(EventData):
    """A version was found not to work."""

    deployment_id: str
    reason: str
    is_production: bool


class Serving(BaseModel):
    """What served before a change: a deployment, or the legacy address (`deployment_id` null)."""

    model_config = ConfigDict(frozen=True)

    deployment_id: str | None
    acp_url: str | None
    docker_image: str | None


class DeploymentPromoted(EventData):
    """A version serves production from this generation on."""

    deployment_id: str
    previous: Serving | None
    generation: int
    cause: Cause
    actor: str
    reason: str | None
    acp_url: str
    docker_image: str | None
    promoted_at: datetime


class DeploymentDemoted(EventData):
    """A version stopped serving and no other took its place; `acp_url` is what serves now, if anything does."""

    deployment_id: str
    generation: int
    cause: Cause
    actor: str
    reason: str | None
    acp_url: str | None
    demoted_at: datetime


class DeploymentDeleted(EventData):
    """A preview was deleted and can be reached no more."""

    deployment_id: str
    expires_at: datetime


class DeploymentPurged(EventData):
    """A deleted version's data were removed; its id stays taken."""

    deployment_id: str
    purged_at: datetime


EventType = Literal[
    "podium.agent.registered.v1",
    "podium.agent.deleted.v1",
    "podium.deployment.created.v1",
    "podium.deployment.ready.v1",
    "podium.deployment.failed.v1",
    "podium.deployment.promoted.v1",
    "podium.deployment.demoted.v1",
    "podium.deployment.deleted.v1",
    "podium.deployment.purged.v1",
]

EVENT_TYPES: dict[type[EventData], EventType] = {
    AgentRegistered: "podium.agent.registered.v1",
    AgentDeleted: "podium.agent.deleted.v1",
    DeploymentCreated: "podium.deployment.created.v1",
    DeploymentReady: "podium.deployment.ready.v1",
    DeploymentFailed: "podium.deployment.failed.v1",
    DeploymentPromoted: "podium.deployment.promoted.v1",
    DeploymentDemoted: "podium.deployment.demoted.v1",
    DeploymentDeleted: "podium.deployment.deleted.v1",
    DeploymentPurged: "podium.deployment.purged.v1",
}


class CloudEvent(BaseModel):
    """The envelope of every event."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: UUID
    source: str = Field(description="/podium/agents/<agent id>: the scope of `sequence`.")
    type: EventType
    subject: str = Field(description="Deployment id, or agent id for agent events.")
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    sequence: str = Field(description=f"+1 with each event of the agent, zero-padded to {SEQUENCE_DIGITS} digits.")
    generation: int = Field(description="+1 with each change of what serves the agent.")
    agentname: str
    traceparent: str | None = Field(default=None, description="W3C trace context of what caused the event.")
    data: dict[str, object]


def event_source(agent_id: str) -> str:
    """`source` of an agent's events."""
    return f"/podium/agents/{agent_id}"


def event_sequence(sequence: int) -> str:
    """`sequence` so that text order is number order."""
    return f"{sequence:0{SEQUENCE_DIGITS}d}"
