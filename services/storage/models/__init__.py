"""The tables. Named constraints refuse bad states; `services.errors` translates their names to domain errors."""

from services.storage.models.base import Base
from services.storage.models.call_counts import CallCount
from services.storage.models.conversations import Conversation
from services.storage.models.deployments import Agent, Deployment, Promotion
from services.storage.models.identities import AuditEntry, Key, KeysVersion
from services.storage.models.inbox import Parked, Registration
from services.storage.models.instances import DepartedInstance, Instance
from services.storage.models.outbox import EventEpoch, LowWater, OutboxEvent
from services.storage.models.probes import Janitor, Probe
from services.storage.models.webhooks import Webhook, WebhookDelivery, WebhookPosition

__all__ = [
    "Agent",
    "AuditEntry",
    "Base",
    "CallCount",
    "Conversation",
    "DepartedInstance",
    "Deployment",
    "EventEpoch",
    "Instance",
    "Janitor",
    "Key",
    "KeysVersion",
    "LowWater",
    "OutboxEvent",
    "Parked",
    "Probe",
    "Promotion",
    "Registration",
    "Webhook",
    "WebhookDelivery",
    "WebhookPosition",
]
