"""The events that Podium publishes: CloudEvents 1.0 in structured JSON mode.

Delivery is at least once and in order. Consumers keep the last `sequence` per `source` and drop events that are not
greater.
Specification: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from datetime import datetime
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from contracts.fields import AcpType, Cause

CONTENT_TYPE = "application/cloudevents+json"
SEQUENCE_DIGITS = 20


class EventData(BaseModel):
    """The fields that all events share: the agent."""

    model_config = ConfigDict(frozen=True)

    agent_id: str
    agent_name: str


class AgentRegistered(EventData):
    """An agent was created, or its announced properties changed; not sent for a repeated announcement."""

    description: str
    acp_type: AcpType
    acp_url: str | None = Field(
        description="Address that serves the agent after this event; null if nothing serves it."
    )


class AgentDeleted(EventData):
    """An agent was deleted; its name can be registered again."""

    acp_url: None = Field(default=None, description="Always null: nothing serves a deleted agent.")
    deleted_at: datetime


class DeploymentCreated(EventData):
    """A version was created, by an announcement or by a request before its pod started."""

    deployment_id: str
    docker_image: str | None


class DeploymentReady(EventData):
    """A version became reachable, or a version in production moved to a new address."""

    deployment_id: str
    docker_image: str | None
    acp_url: str
    rpc_path: str
    is_production: bool


class DeploymentFailed(EventData):
    """A version failed."""

    deployment_id: str
    reason: str
    is_production: bool


class DeploymentDrained(EventData):
    """No conversation is left with a version that has stopped serving; sent once for each time it stopped."""

    deployment_id: str
    reason: Literal["conversations-ended", "deadline"]
    moved: int = Field(description="Conversations that were open at the deadline; their next calls go to what serves.")
    draining_since: datetime
    drained_at: datetime


class InstanceReady(EventData):
    """A pod of a version with several became reachable, or moved to a new address."""

    deployment_id: str
    instance_id: str | None = Field(description="Null, here and in the next events, for the pod that names none.")
    acp_url: str
    is_production: bool


class InstanceFailed(EventData):
    """A pod of a version with several failed. The version fails only with its last one."""

    deployment_id: str
    instance_id: str | None
    reason: str
    is_production: bool


class InstanceGone(EventData):
    """A pod of a version with several said goodbye, or was removed because it had failed for long."""

    deployment_id: str
    instance_id: str | None
    reason: str
    is_production: bool


class Serving(BaseModel):
    """What served before a cutover: a deployment, or the legacy address (`deployment_id` is null)."""

    model_config = ConfigDict(frozen=True)

    deployment_id: str | None
    acp_url: str | None
    docker_image: str | None


class DeploymentPromoted(EventData):
    """A version became production and serves the agent from this generation on."""

    deployment_id: str
    previous: Serving | None
    generation: int
    cause: Cause
    actor: str
    reason: str | None
    acp_url: str
    docker_image: str | None
    promoted_at: datetime
    request_id: str | None = None
    on_behalf_of: str | None = None


class DeploymentDemoted(EventData):
    """The production version stopped serving and no version replaced it; `acp_url`: the legacy address if it serves."""

    deployment_id: str
    generation: int
    cause: Cause
    actor: str
    reason: str | None
    acp_url: str | None
    demoted_at: datetime
    request_id: str | None = None
    on_behalf_of: str | None = None


class DeploymentDeleted(EventData):
    """A preview was deleted and is not reachable."""

    deployment_id: str
    expires_at: datetime


class DeploymentPurged(EventData):
    """The data of a deleted version was removed; its id stays reserved."""

    deployment_id: str
    purged_at: datetime


class WebhookDisabled(EventData):
    """A webhook gets no more events: its receiver is gone, or has accepted nothing for long.

    An event of the agent whose event was not accepted.
    """

    webhook_id: str
    all_agents: bool = Field(description="Whether the webhook is for all agents.")
    reason: Literal["gone", "failing"]
    failing_since: datetime | None
    disabled_at: datetime


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
    "podium.deployment.drained.v1",
    "podium.instance.ready.v1",
    "podium.instance.failed.v1",
    "podium.instance.gone.v1",
    "podium.webhook.disabled.v1",
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
    DeploymentDrained: "podium.deployment.drained.v1",
    InstanceReady: "podium.instance.ready.v1",
    InstanceFailed: "podium.instance.failed.v1",
    InstanceGone: "podium.instance.gone.v1",
    WebhookDisabled: "podium.webhook.disabled.v1",
}


class CloudEvent(BaseModel):
    """The envelope of every event."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: UUID
    source: str = Field(description="/podium/agents/<agent id>; `sequence` counts within one source.")
    type: Annotated[str, WithJsonSchema({"type": "string", "enum": list(get_args(EventType))})] = Field(
        description="A newer version of Podium may send types that are not in this list: ignore them."
    )
    subject: str = Field(
        description="Id of the deployment; for agent events, id of the agent; for webhook events, of the webhook."
    )
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    sequence: str = Field(
        description=f"Increases by 1 with each event of the agent; zero-padded to {SEQUENCE_DIGITS} digits."
    )
    generation: int = Field(description="Increases by 1 with each cutover of the agent.")
    agentname: str
    traceparent: str | None = Field(
        default=None, description="W3C trace context of the request or announcement that caused the event."
    )
    data: dict[str, object]


def event_source(agent_id: str) -> str:
    """The `source` of an agent's events."""
    return f"/podium/agents/{agent_id}"


def event_sequence(sequence: int) -> str:
    """The `sequence` as text, zero-padded so that text order equals numeric order."""
    return f"{sequence:0{SEQUENCE_DIGITS}d}"
