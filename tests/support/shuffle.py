"""Announcements of several agents, repeated and in random order, as a broker may deliver them."""

import os
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from contracts.messages import RegisterAgent
from contracts.topology import registration_key
from services.registration.batch import Incoming, read_message
from services.registration.parked import Envelope
from tests.support.factories import a_body
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
            self.add(name, deployment_id=f"{self.rng.choice(sorted(POLICIES))}.0", docker_image="changed:1")
            self.add(name, agent_id="somebody else's", deployment_id=f"{name}.0")
        for name in ("bot-legacy", "bot-legacy", "bot-legacy", "bot-always", "bot-built"):
            for _ in range(2):
                self.add(name, description=self.rng.choice([None, "Described by legacy."]), docker_image=None)
        for victim in POLICIES:
            self.add("bot-thief", deployment_id=f"{victim}.{self.rng.randrange(DEPLOYMENTS)}")

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
