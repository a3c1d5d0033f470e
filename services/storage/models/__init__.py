"""The tables. Named constraints refuse bad states; `services.errors` translates their names to domain errors."""

from services.storage.models.base import Base
from services.storage.models.deployments import Agent, Deployment, Promotion
from services.storage.models.inbox import Parked, Registration
from services.storage.models.outbox import EventEpoch, LowWater, OutboxEvent
from services.storage.models.probes import Janitor, Probe
from services.storage.models.sessions import McpSession

__all__ = [
    "Agent",
    "Base",
    "Deployment",
    "EventEpoch",
    "Janitor",
    "LowWater",
    "McpSession",
    "OutboxEvent",
    "Parked",
    "Probe",
    "Promotion",
    "Registration",
]
