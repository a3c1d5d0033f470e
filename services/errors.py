"""Everything that can be refused, with its meaning over HTTP; the docstring is the default message."""

from typing import Self

from contracts.fields import ErrorStyle


class PodiumError(Exception):
    """Podium could not do this."""

    status = 500
    reason = "internal"
    # How the agent that was called wants its callers to be told; None where that is not known.
    error_style: ErrorStyle | None = None

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "")
        super().__init__(self.message)

    def in_style(self, error_style: ErrorStyle | None) -> Self:
        """This error, told as the agent wants it."""
        self.error_style = error_style
        return self


class InvalidRequest(PodiumError):
    """The request is not valid."""

    status = 400
    reason = "invalid-request"

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Unauthorized(PodiumError):
    """A valid API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."""

    status = 401
    reason = "unauthorized"


class AgentNotFound(PodiumError):
    """There is no such agent."""

    status = 404
    reason = "agent-not-found"


class DeploymentNotFound(PodiumError):
    """This agent has no such deployment."""

    status = 404
    reason = "deployment-not-found"


class ParkedNotFound(PodiumError):
    """There is no such parked message: it was dropped, or never parked."""

    status = 404
    reason = "parked-not-found"


class DeploymentNotReady(PodiumError):
    """The deployment is not Ready: wait until its pod has registered, then promote it."""

    status = 409
    reason = "deployment-not-ready"


class ProductionCannotBeDeleted(PodiumError):
    """This deployment is in production: promote another one first, then delete it."""

    status = 409
    reason = "production-cannot-be-deleted"


class NothingToRollBackTo(PodiumError):
    """No earlier version of this agent can serve: promote a Ready deployment instead."""

    status = 409
    reason = "nothing-to-roll-back-to"


class TargetDoesNotAnswer(PodiumError):
    """What the rollback leads to does not answer a probe: name another deployment, or send force."""

    status = 409
    reason = "rollback-target-does-not-answer"


class AgentIdMismatch(PodiumError):
    """The announced agent_id is not the id of the named agent: leave agent_id out, or announce the right name."""

    status = 409
    reason = "agent-id-mismatch"


class DeploymentOfAnotherAgent(PodiumError):
    """The deployment id belongs to another agent: ids are unique over all agents, choose a new one."""

    status = 409
    reason = "deployment-of-another-agent"


class ImageConflict(PodiumError):
    """The deployment already has another image, and images never change: announce it under a new deployment id."""

    status = 409
    reason = "image-conflict"


class AgentDeletedError(PodiumError):
    """The agent was deleted: its name is free, register it again to make a new agent."""

    status = 410
    reason = "agent-deleted"


class DeploymentDeletedError(PodiumError):
    """The deployment was deleted and its id stays taken: deploy again under a new deployment id."""

    status = 410
    reason = "deployment-deleted"


class GenerationMismatch(PodiumError):
    """What serves the agent has changed since you looked: read the agent again, then decide."""

    status = 412
    reason = "generation-mismatch"


class MessageTooLarge(PodiumError):
    """The message is too large."""

    status = 413
    reason = "message-too-large"


class Malformed(PodiumError):
    """The message is not a registration."""

    status = 400
    reason = "malformed"


class KeyMismatch(PodiumError):
    """The routing key names another agent than the body: publish under 'agent.<name>'."""

    status = 400
    reason = "key-mismatch"


class Unprocessable(PodiumError):
    """The database refuses this message."""

    status = 400
    reason = "unprocessable"


class DeadLettered(PodiumError):
    """The broker gave this message up."""

    reason = "dead-lettered"


class NotRetryable(PodiumError):
    """The message is no JSON object, so no new message id fits in: drop it, and have its pod announce itself again."""

    status = 409
    reason = "not-retryable"


class Unavailable(PodiumError):
    """The database cannot be reached: try again."""

    status = 503
    reason = "database-unavailable"
    retry_after_seconds = 2


class Busy(Unavailable):
    """Somebody else is changing this agent: try again."""

    reason = "agent-busy"
    retry_after_seconds = 1


class DatabaseFailed(Unavailable):
    """The database met an error of its own: try again, and look at its log if that does not help."""

    reason = "database-failed"


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached: try again."""

    reason = "broker-unavailable"


class NothingServes(Unavailable):
    """Nothing serves this agent yet: register a pod, or promote a deployment."""

    reason = "nothing-serves"
    retry_after_seconds = 5


class DeploymentUnavailable(Unavailable):
    """The deployment cannot take requests now."""

    reason = "deployment-unavailable"
    retry_after_seconds = 5


class DestinationDenied(PodiumError):
    """The agent's address may not be dialled: the settings PODIUM_DIAL_NETWORKS, _HOSTS and _PORTS say which may."""

    status = 502
    reason = "destination-denied"


class TargetMoved(Busy):
    """The agent keeps changing while what it would go back to is asked whether it lives: try again."""

    reason = "rollback-target-moved"


class LostRace(PodiumError):
    """Somebody was faster: the transaction must run again."""

    status = 503
    reason = "lost-race"


# Constraints that a legitimate caller can meet; any other violation is a defect and stays an error of its own.
CONSTRAINT_ERRORS: dict[str, type[PodiumError]] = {
    "agents_name_of_living_key": LostRace,
    "deployments_pkey": LostRace,
    "registrations_pkey": LostRace,
    "deployments_production_not_deleted": ProductionCannotBeDeleted,
    "deployments_ready_has_address": DeploymentNotReady,
}
