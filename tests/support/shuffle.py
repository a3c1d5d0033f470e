"""Announcements of several agents, repeated and in random order, as a broker may deliver them."""

import os
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from contracts.messages import RegisterAgent, RegisterBuildRequest
from contracts.topology import registration_key
from services.domain.announcement import Announcement
from services.registration.batch import Incoming, read_message
from services.registration.parked import Envelope
from tests.support.factories import a_body, a_goodbye
from tests.support.reference_model.registrations import Message

FRESH_SEED = int(os.environ["FRESH_SEED"])
POLICIES = {"bot-first": None, "bot-legacy": None, "bot-always": "always", "bot-never": "never", "bot-built": "first"}
DEPLOYMENTS = 6
LARGEST_BATCH = 20


@dataclass
class Shuffle:
    """Messages of several agents, and batches of deliveries of them."""

    rng: random.Random
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    messages: dict[UUID, Message] = field(default_factory=dict)
    incoming: list[Incoming] = field(default_factory=list)

    def add(self, name: str, **fields: Any) -> None:
        """Add a message, published at a random time: mostly in the past, sometimes by a clock that is ahead."""
        ahead = self.rng.choice([self.rng.uniform(-3600, -60)] * 6 + [self.rng.uniform(5, 29), 3600.0])
        body = a_body(
            name,
            message_id=str(UUID(int=self.rng.getrandbits(128), version=4)),
            registered_at=(self.now + timedelta(seconds=ahead)).isoformat(),
            acp_url=f"http://{name}.{self.rng.randrange(10**6)}",
            rpc_path=self.rng.choice([None, "/rpc"]),
            error_style=self.rng.choice([None, "jsonrpc"]),
            **fields,
        )
        message = RegisterAgent.model_validate_json(to_json(body))
        self.messages[message.message_id] = message
        self.incoming.append(read_message(Envelope(registration_key(name), to_json(body))))

    def say_goodbye(self, name: str, deployment_id: str, instance_id: str) -> None:
        """Add the goodbye of an instance, published at a random time."""
        moment = self.now + timedelta(seconds=self.rng.uniform(-3600, -60))
        message_id = UUID(int=self.rng.getrandbits(128), version=4)
        goodbye = a_goodbye(
            deployment_id, instance_id, name, message_id=str(message_id), registered_at=moment.isoformat()
        )
        assert isinstance(goodbye.content, Announcement)
        assert not isinstance(goodbye.content.request, RegisterBuildRequest)
        self.messages[message_id] = goodbye.content.request
        self.incoming.append(goodbye)

    def fill(self) -> None:
        """Add at least five deployments per agent, each announced several times; and legacy and invalid messages."""
        for name in POLICIES:
            for number in range(DEPLOYMENTS):
                image = self.rng.choice([None, f"{name}:{number}"])
                for turn in range(self.rng.randint(1, 4)):
                    self.add(
                        name,
                        deployment_id=f"{name}.{number}",
                        docker_image=self.rng.choice([None, image]),
                        description=self.rng.choice([None, f"Described by {number}."]),
                        registration_metadata={f"fact-{self.rng.randrange(3)}": turn},
                    )
            self._add_instances(name)
            self.add(name, deployment_id=f"{self.rng.choice(sorted(POLICIES))}.0", docker_image="changed:1")
            self.add(name, agent_id="somebody else's", deployment_id=f"{name}.0")
        for name in ("bot-legacy", "bot-legacy", "bot-legacy", "bot-always", "bot-built"):
            for _ in range(2):
                self.add(name, description=self.rng.choice([None, "Described by legacy."]), docker_image=None)
        for victim in POLICIES:
            self.add("bot-thief", deployment_id=f"{victim}.{self.rng.randrange(DEPLOYMENTS)}")

    def _add_instances(self, name: str) -> None:
        """Two deployments whose pods name themselves, among pods that do not, and goodbyes of some of them."""
        for number in range(DEPLOYMENTS, DEPLOYMENTS + 2):
            deployment_id = f"{name}.{number}"
            for _ in range(8):
                instance_id = self.rng.choice([None, "pod-0", "pod-1", "pod-2"])
                facts = {f"fact-{self.rng.randrange(3)}": self.rng.randrange(9)}
                self.add(name, deployment_id=deployment_id, instance_id=instance_id, registration_metadata=facts)
            for _ in range(4):
                self.say_goodbye(name, deployment_id, self.rng.choice(["pod-0", "pod-1", "pod-2", "pod-3"]))
        self.say_goodbye(name, f"{self.rng.choice(sorted(POLICIES))}.{DEPLOYMENTS}", "pod-1")

    def deliveries(self) -> list[list[Incoming]]:
        """Every message one to three times, in random order, in batches of random size."""
        arriving = [each for each in self.incoming for _ in range(self.rng.randint(1, 3))]
        self.rng.shuffle(arriving)
        batches = []
        while arriving:
            size = self.rng.randint(1, LARGEST_BATCH)
            batches.append(arriving[:size])
            arriving = arriving[size:]
        return batches
