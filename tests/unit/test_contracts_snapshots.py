import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from contracts import topology
from contracts.events import (
    EVENT_TYPES,
    AgentDeleted,
    AgentRegistered,
    CloudEvent,
    DeploymentCreated,
    DeploymentDeleted,
    DeploymentDemoted,
    DeploymentDrained,
    DeploymentFailed,
    DeploymentPromoted,
    DeploymentPurged,
    DeploymentReady,
    EventData,
    InstanceFailed,
    InstanceGone,
    InstanceReady,
    Serving,
    WebhookDisabled,
    event_sequence,
    event_source,
)
from contracts.messages import DeregisterInstance, RegisterAgent, RegisterAgentRequest, RegisterBuildRequest
from tests.support.factories import ADDRESS, AGENT_ID, NOW

SNAPSHOTS = Path(__file__).parent.parent / "snapshots"
RENEW = "PODIUM_RENEW_SNAPSHOTS"
IMAGE = "registry/bot:1"
OF_AGENT = {"agent_id": str(AGENT_ID), "agent_name": "support-bot"}
OF_DEPLOYMENT = {**OF_AGENT, "deployment_id": "v2"}

EXAMPLES: list[EventData] = [
    AgentRegistered(**OF_AGENT, description="Answers mail.", acp_type="async", acp_url=ADDRESS),
    AgentDeleted(**OF_AGENT, deleted_at=NOW),
    DeploymentCreated(**OF_DEPLOYMENT, docker_image=IMAGE),
    DeploymentReady(**OF_DEPLOYMENT, docker_image=IMAGE, acp_url=ADDRESS, rpc_path="/api", is_production=False),
    DeploymentFailed(**OF_DEPLOYMENT, reason="Three probes failed.", is_production=True),
    DeploymentPromoted(
        **OF_DEPLOYMENT,
        previous=Serving(deployment_id=None, acp_url="http://10.0.0.6:8000", docker_image=None),
        generation=2,
        cause="manual",
        actor="amy",
        reason="Fixes the greeting.",
        acp_url=ADDRESS,
        docker_image=IMAGE,
        promoted_at=NOW,
    ),
    DeploymentDemoted(
        **OF_DEPLOYMENT,
        generation=3,
        cause="legacy",
        actor="pod",
        reason=None,
        acp_url="http://10.0.0.6:8000",
        demoted_at=NOW,
    ),
    DeploymentDeleted(**OF_DEPLOYMENT, expires_at=NOW),
    DeploymentPurged(**OF_DEPLOYMENT, purged_at=NOW),
    DeploymentDrained(**OF_DEPLOYMENT, reason="deadline", moved=2, draining_since=NOW, drained_at=NOW),
    InstanceReady(**OF_DEPLOYMENT, instance_id="pod-1", acp_url=ADDRESS, is_production=True),
    InstanceFailed(**OF_DEPLOYMENT, instance_id="pod-1", reason="Three probes failed.", is_production=True),
    InstanceGone(**OF_DEPLOYMENT, instance_id=None, reason="it said goodbye", is_production=False),
    WebhookDisabled(
        **OF_AGENT,
        webhook_id="6f0c5a0e-2b43-4f0a-9d55-0c4f4f0e5a11",
        all_agents=True,
        reason="failing",
        failing_since=NOW,
        disabled_at=NOW,
    ),
]


def on_the_wire(data: EventData) -> dict[str, Any]:
    """The event as a consumer reads it."""
    of_deployment = getattr(data, "deployment_id", None)
    event = CloudEvent(
        id=UUID(int=7),
        source=event_source(data.agent_id),
        type=EVENT_TYPES[type(data)],
        subject=of_deployment or data.agent_id,
        time=NOW,
        sequence=event_sequence(5),
        generation=2,
        agentname=data.agent_name,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        data=json.loads(data.model_dump_json()),
    )
    decoded: dict[str, Any] = json.loads(event.model_dump_json())
    return decoded


def matches_snapshot(name: str, content: object, *, renew: bool) -> None:
    """Compare with the committed file; with `renew`, write the file first."""
    path = SNAPSHOTS / f"{name}.json"
    text = json.dumps(json.loads(to_json(content)), indent=2, sort_keys=True) + "\n"
    if renew:
        path.write_text(text)
    stored = path.read_text() if path.exists() else "(no snapshot)"
    assert text == stored, (
        f"\nThe wire format changed: tests/snapshots/{path.name} does not match. Deployed pods and consumers use the "
        f"committed form.\nIf the change is intended, renew the snapshot and have it reviewed:\n\n"
        f"    {RENEW}=1 .venv/bin/pytest {Path(__file__).relative_to(SNAPSHOTS.parent.parent)}\n"
    )


@pytest.fixture
def renew() -> bool:
    """Whether to write new snapshots."""
    # The suite's conftest takes PODIUM_* out of the environment, and keeps what it took.
    from tests.conftest import EXTERNAL  # noqa: PLC0415 - a conftest is importable only while tests run

    return EXTERNAL.get(RENEW) == "1"


@pytest.mark.parametrize(
    "model", [RegisterAgent, RegisterAgentRequest, RegisterBuildRequest, DeregisterInstance, CloudEvent]
)
def test_message_schemas_match_their_snapshots(model: type[BaseModel], *, renew: bool) -> None:
    """The JSON schema of each message and of the envelope equals the committed one."""
    matches_snapshot(f"schema.{model.__name__}", model.model_json_schema(), renew=renew)


@pytest.mark.parametrize("data", EXAMPLES, ids=lambda data: type(data).__name__)
def test_event_json_matches_its_snapshot(data: EventData, *, renew: bool) -> None:
    """The JSON of every event equals the committed one."""
    matches_snapshot(f"event.{type(data).__name__}", on_the_wire(data), renew=renew)


def test_every_event_type_has_a_snapshot() -> None:
    """No event type can be added without a snapshot."""
    assert {type(data) for data in EXAMPLES} == EVENT_TYPES.keys()


def test_broker_names_and_arguments_match_their_snapshot(*, renew: bool) -> None:
    """RabbitMQ refuses to redeclare a queue with other arguments, so they must not change unnoticed."""
    declared = {
        "exchanges": [topology.REGISTRATIONS_EXCHANGE, topology.EVENTS_EXCHANGE],
        "queues": {
            topology.REGISTRATIONS_QUEUE: topology.registrations_arguments(),
            topology.PARKED_QUEUE: topology.parked_arguments(),
        },
        "bindings": {topology.REGISTRATIONS_QUEUE: topology.REGISTRATIONS_BINDING},
        "keys": {
            "registration": topology.registration_key("support-bot"),
            "events": [topology.event_key(name, "support-bot") for name in EVENT_TYPES.values()],
        },
    }
    matches_snapshot("topology", declared, renew=renew)
