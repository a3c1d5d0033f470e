"""The effect of announcements in the model: G3 to G9, G12 and G15, one message at a time."""

from collections.abc import Sequence
from uuid import UUID

from tests.support.reference_model.rollback_walk import LEGACY
from tests.support.reference_model.state import Life, Message, Moment, Refused, Tables, Version

TOLERANCE: Moment = 2_000  # stands for 30 seconds


class Announcing(Tables):
    """The tables, and the effect of announcements on them."""

    def register(self, messages: Sequence[Message], now: Moment) -> str:
        """The outcomes of the messages of one batch."""
        return ", ".join([self._feed(message, now) for message in messages])

    def refuse_as_other(self, life: Life, stored: Version, image: str | None) -> None:
        """G5, G7 and G6: raises if the agent cannot have this deployment with this image."""
        if stored.owner != life.label:
            same_name = self.lives[stored.owner].name == life.name
            raise Refused("DeploymentDeletedError" if same_name else "DeploymentOfAnotherAgent")
        if stored.deleted_at is not None:
            raise Refused("DeploymentDeletedError")
        if image is not None and stored.image not in {None, image}:
            raise Refused("ImageConflict")

    def _feed(self, message: Message, now: Moment) -> str:
        """G3 and G4: each message is decided once and gets its time once. A refused one from the queue is parked."""
        if message.id in self.inbox:
            return "Duplicate"
        at = now if message.published is None or message.published > now + TOLERANCE else message.published
        lives = self.of_name(message.agent)
        exists = bool(lives) and lives[-1].deleted_at is None
        number = len(lives) + 1
        life = lives[-1] if exists else Life(label=f"{message.agent}#{number}", name=message.agent)
        try:
            outcome = result = self._decide(life, message, at, now)
        except Refused as refused:
            outcome, result = "Rejected", f"Rejected ({refused})"
            if message.way == "queue":
                key = (message.agent, message.deployment or message.id, str(refused))
                self.parked[key] = self.parked.get(key, 0) + 1
        self.inbox[message.id] = (message.agent, message.deployment, outcome, at)
        if life.events:
            self.lives[life.label] = life
        return result

    def _decide(self, life: Life, message: Message, at: Moment, now: Moment) -> str:
        """The checks, in the order of `register_batch`."""
        if any(old.deleted_at is not None and at < old.deleted_at for old in self.of_name(life.name)):
            return "Stale"
        if message.way == "build":
            self._describe(life, message)
            return "Registered"
        if message.agent_id not in {None, life.label}:
            raise Refused("AgentIdMismatch")
        if message.deployment is None:
            return self._legacy(life, message, (at, message.id), now)
        return self._deployment(life, message, message.deployment, (at, message.id), now)

    def _describe(self, life: Life, message: Message, *, new_agent: bool = False) -> None:
        """Store the agent's self-description, with an event if it changed; a deployment describes only a new agent."""
        before = life.self_description()
        life.description = message.description if message.description is not None else life.description
        if not new_agent:
            life.image = message.image or life.image
            life.facts |= message.facts
            life.legacy = life.legacy if message.way == "build" else message.address
        if not life.events or life.self_description() != before:
            life.emit("agent.registered")

    def _legacy(self, life: Life, message: Message, pair: tuple[Moment, UUID], now: Moment) -> str:
        """G12."""
        if life.newest is not None and pair <= life.newest:
            return "Stale"
        life.newest = pair
        takes_over = life.legacy is None or life.legacy[0] != message.url
        production = self.versions[life.production] if life.production else None
        if production is not None:
            published_later = production.promoted_at is not None and pair[0] > production.promoted_at
            takes_over = published_later and (takes_over or production.status != "Ready")
        if takes_over:
            self.cut_over(life, "legacy", LEGACY, now, legacy_url=message.url)
        self._describe(life, message)
        return "Shadowed" if production is not None and not takes_over else "Registered"

    def _deployment(self, life: Life, message: Message, name: str, pair: tuple[Moment, UUID], now: Moment) -> str:
        """G4 to G9 and G15."""
        version = self.versions.get(name)
        if version is not None:
            self.refuse_as_other(life, version, message.image)
            if version.newest is not None and pair <= version.newest:
                return "Stale"
        if not life.events:
            self._describe(life, message, new_agent=True)
        if version is None:
            version = self.versions[name] = Version(id=name, owner=life.label, created_at=now, status_since=now)
            life.emit("deployment.created", name)
        was, never_ready, moved = (
            version.status,
            version.first_registered_at is None,
            version.address != message.address,
        )
        version.image = version.image or message.image or life.image
        version.facts |= message.facts
        version.address, version.newest = message.address, pair
        if was == "Pending" or (was == "Failed" and pair[0] > version.status_since):
            version.status, version.status_since = "Ready", now
            version.first_registered_at = pair[0] if never_ready else version.first_registered_at
        if version.status == "Ready" and (was != "Ready" or (moved and life.production == name)):
            life.emit("deployment.ready", name)
        if version.status == "Ready" and never_ready and self._goes_to_production(life, pair[0]):
            self.cut_over(life, life.policy, name, now)
        return "Registered"

    def _goes_to_production(self, life: Life, published: Moment) -> bool:
        """G9: whether a deployment that is Ready for the first time is promoted automatically."""
        if life.policy == "never" or life.paused:
            return False
        if life.policy == "first":
            return life.serves is None
        current = self.versions[life.production].first_registered_at if life.production else None
        return all(earlier is None or published > earlier for earlier in (current, life.promote_requested_at))
