"""The guarantees as a sequential program: announcements, promotes, rollbacks and deletions, one at a time.

Written from docs/guarantees.md. It shares no code with the product.
"""

from tests.support.reference_model.announcing import Announcing
from tests.support.reference_model.rollback_walk import LEGACY, Cutover, rollback_target
from tests.support.reference_model.state import Life, Moment, Refused, Version


class Model(Announcing):
    """The tables, and all changes of them; each method returns the result of its caller, or raises `Refused`."""

    def promote(self, label: str, name: str, if_generation: int | None, now: Moment) -> str:
        """G10."""
        life, version = self._own(label, name)
        at = now
        if life.production != name:
            self._check(life, if_generation)
            if version.status != "Ready":
                raise Refused("DeploymentNotReady")
            self.cut_over(life, "manual", name, now)
            at = life.ledger[-1].at
        life.promote_requested_at = at
        life.paused = False
        return f"generation {life.generation}"

    def roll_back(self, label: str, to: str | None, if_generation: int | None, now: Moment) -> str:
        """G17."""
        life = self._living(label) if to in {None, LEGACY} else self._own(label, to or "")[0]
        if to is None or to != life.serves:
            self._check(life, if_generation)
            target, restored = self._rollback_to(life, to)
            self.cut_over(life, "rollback", target, now, restored=restored)
        life.paused = True
        return f"generation {life.generation}"

    def create(self, label: str, name: str, image: str, now: Moment) -> str:
        """A deployment created before its pod registers; the stored one if it agrees."""
        life, version = self._living(label), self.versions.get(name)
        if version is None:
            version = self.versions[name] = Version(id=name, owner=label, created_at=now, status_since=now)
            life.emit("deployment.created", name)
        self.refuse_as_other(life, version, image)
        version.image = image
        return version.status

    def delete(self, label: str, name: str, now: Moment) -> str:
        """G13."""
        life, version = self._find(label), self.versions.get(name)
        if version is None or version.owner != label:
            raise Refused("DeploymentNotFound")
        if life.production == name:
            raise Refused("ProductionCannotBeDeleted")
        if version.deleted_at is None:
            version.deleted_at = now
            life.emit("deployment.deleted", name)
        return "done"

    def delete_agent(self, label: str, now: Moment) -> str:
        """G16."""
        life = self._find(label)
        if life.deleted_at is None:
            if life.serves is not None:
                self.cut_over(life, "agent_deleted", None, now)
            life.deleted_at = now
            life.emit("agent.deleted")
            for version in self.versions.values():
                if version.owner == label and version.deleted_at is None:
                    version.deleted_at = now
        return f"generation {life.generation}"

    def change(self, label: str, *, policy: str | None, paused: bool | None) -> str:
        """Settings of an agent."""
        life = self._living(label)
        life.policy = policy or life.policy
        life.paused = life.paused if paused is None else paused
        return f"generation {life.generation}"

    def fail(self, name: str, now: Moment) -> str:
        """A verdict that a deployment is Failed."""
        version = self.versions.get(name)
        if version is not None:
            version.status, version.status_since = "Failed", now
        return "done"

    def _find(self, label: str) -> Life:
        if label not in self.lives:
            raise Refused("AgentNotFound")
        return self.lives[label]

    def _living(self, label: str) -> Life:
        life = self._find(label)
        if life.deleted_at is not None:
            raise Refused("AgentDeletedError")
        return life

    def _own(self, label: str, name: str) -> tuple[Life, Version]:
        """404 before 410."""
        life, version = self._find(label), self.versions.get(name)
        if version is None or version.owner != label:
            raise Refused("DeploymentNotFound")
        self._living(label)
        if version.deleted_at is not None:
            raise Refused("DeploymentDeletedError")
        return life, version

    def _check(self, life: Life, if_generation: int | None) -> None:
        if if_generation not in {None, life.generation}:
            raise Refused("GenerationMismatch")

    def _usable(self, life: Life, target: str) -> bool:
        if target == LEGACY:
            return life.legacy is not None
        return self.versions[target].status == "Ready" and self.versions[target].deleted_at is None

    def _rollback_to(self, life: Life, to: str | None) -> tuple[str, int | None]:
        """What a rollback restores, and the generation that it counts as."""
        if to is not None:
            if not self._usable(life, to):
                raise Refused("NothingToRollBackTo" if to == LEGACY else "DeploymentNotReady")
            served = [row.restored or generation for generation, row in enumerate(life.ledger, 1) if row.to == to]
            return to, served[-1] if served else None
        history = [Cutover(row.to, row.restored) for row in life.ledger]
        restored = rollback_target(history, life.serves, lambda each: self._usable(life, each))
        target = life.ledger[restored - 1].to if restored else None
        if target is None:
            raise Refused("NothingToRollBackTo")
        return target, restored
