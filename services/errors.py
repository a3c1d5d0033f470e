"""Errors that callers see, with their HTTP status and reason. The docstring is the default message."""

from typing import Self
from uuid import UUID

from contracts.fields import ErrorStyle


class PodiumError(Exception):
    """Podium failed with an internal error: see the log of the process."""

    status = 500
    reason = "internal"
    # How the called agent reports errors to its callers; None if that is unknown.
    error_style: ErrorStyle | None = None

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "")
        super().__init__(self.message)

    def in_style(self, error_style: ErrorStyle | None) -> Self:
        """This error, in the error style of the called agent."""
        self.error_style = error_style
        return self


class InvalidRequest(PodiumError):
    """The request is not valid: compare it with /openapi.json."""

    status = 400
    reason = "invalid-request"

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Unauthorized(PodiumError):
    """A valid API key is required: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."""

    status = 401
    reason = "unauthorized"


class InsufficientScope(PodiumError):
    """This key may not do that: use one with the scope that the route needs."""

    status = 403
    reason = "insufficient-scope"

    def __init__(self, scopes: tuple[str, ...] = ()) -> None:
        self.scopes = scopes
        listed = " or ".join(repr(each) for each in scopes)
        super().__init__(f"This key may not do that: it needs the scope {listed}." if scopes else None)


class AllAgentsNeeded(PodiumError):
    """This key is bound to some agents: use one without such a bound."""

    status = 403
    reason = "all-agents-needed"


class TooManyRequests(PodiumError):
    """Too many requests: send fewer of them."""

    status = 429
    reason = "too-many-requests"

    def __init__(self, message: str | None = None, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyFailures(TooManyRequests):
    """Too many requests from this address had no valid key: try again later."""

    reason = "too-many-failures"


class TooManyCalls(TooManyRequests):
    """The limit of calls is reached: call less often, or have fewer calls under way."""

    reason = "too-many-calls"


class AgentNotFound(PodiumError):
    """There is no such agent: check its id or name."""

    status = 404
    reason = "agent-not-found"


class DeploymentNotFound(PodiumError):
    """This agent has no such deployment: check the deployment id."""

    status = 404
    reason = "deployment-not-found"


class UnknownDeployment(DeploymentNotFound):
    """There is no deployment with this id: check it."""


class ParkedNotFound(PodiumError):
    """There is no parked message with this id: list the parked messages to see their ids."""

    status = 404
    reason = "parked-not-found"


class KeyNotFound(PodiumError):
    """There is no such key: list the keys to see their ids."""

    status = 404
    reason = "key-not-found"


class KeyNameTaken(PodiumError):
    """There is a key with this name: choose another one."""

    status = 409
    reason = "key-name-taken"


class WebhookNotFound(PodiumError):
    """There is no such webhook: GET /webhooks lists them."""

    status = 404
    reason = "webhook-not-found"


class TooManyWebhooks(PodiumError):
    """There are too many webhooks: delete those that nobody needs."""

    status = 409
    reason = "too-many-webhooks"


class DeploymentNotReady(PodiumError):
    """The deployment is not Ready: wait until it is, then try again."""

    status = 409
    reason = "deployment-not-ready"


class ProductionCannotBeDeleted(PodiumError):
    """This deployment is in production: promote another one first, then delete it."""

    status = 409
    reason = "production-cannot-be-deleted"


class ConversationsOpen(PodiumError):
    """Conversations with this deployment are open: wait until they have ended, or send force."""

    status = 409
    reason = "conversations-open"


class NothingToRollBackTo(PodiumError):
    """No earlier version of this agent can serve: promote a Ready deployment instead."""

    status = 409
    reason = "nothing-to-roll-back-to"


class TargetDoesNotAnswer(PodiumError):
    """The rollback target does not answer a probe: name another deployment, or send force."""

    status = 409
    reason = "rollback-target-does-not-answer"


class AgentIdMismatch(PodiumError):
    """The announced agent_id is not the id of the named agent: omit agent_id, or announce the right name."""

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


class TooManyInstances(PodiumError):
    """The deployment has as many instances as PODIUM_INSTANCES_PER_DEPLOYMENT allows: let some say goodbye."""

    status = 409
    reason = "too-many-instances"


class AgentDeletedError(PodiumError):
    """The agent was deleted: register its name again to create a new agent."""

    status = 410
    reason = "agent-deleted"


class DeploymentDeletedError(PodiumError):
    """The deployment was deleted and its id stays taken: deploy again under a new deployment id."""

    status = 410
    reason = "deployment-deleted"


class GenerationMismatch(PodiumError):
    """The agent is at another generation than the request requires: read the agent again, then decide."""

    status = 412
    reason = "generation-mismatch"


class MessageTooLarge(PodiumError):
    """The message is too large: shorten it."""

    status = 413
    reason = "message-too-large"


class Malformed(PodiumError):
    """The message is not a valid registration: correct it and send it again."""

    status = 400
    reason = "malformed"


class KeyMismatch(PodiumError):
    """The routing key names another agent than the body: publish with the key 'agent.<name>'."""

    status = 400
    reason = "key-mismatch"


class NotSigned(PodiumError):
    """The message has no valid signature: sign it with the agent's signing key, which 'podium agents key' prints."""

    status = 401
    reason = "not-signed"


class Unprocessable(PodiumError):
    """The database refuses this message: correct it and send it again."""

    status = 400
    reason = "unprocessable"


class DeadLettered(PodiumError):
    """RabbitMQ stopped delivering this message."""

    reason = "dead-lettered"


class NotRetryable(PodiumError):
    """The message is not a JSON object, so it cannot get a new message id: drop it, and let its pod register again."""

    status = 409
    reason = "not-retryable"


class RetryNotSigned(PodiumError):
    """The parked message has no valid signature: check what it says, then retry it with accept_unsigned."""

    status = 409
    reason = "retry-not-signed"


class Unavailable(PodiumError):
    """The database cannot be reached: try again."""

    status = 503
    reason = "database-unavailable"
    retry_after_seconds = 2


class Busy(Unavailable):
    """Another process is changing this agent: try again."""

    reason = "agent-busy"
    retry_after_seconds = 1


class StatementTimeout(Unavailable):
    """The database needed too long for a statement: try again."""

    reason = "database-too-slow"


class DatabaseFailed(Unavailable):
    """The database reported an internal error: try again; if that does not help, see the database's log."""

    reason = "database-failed"


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached: try again."""

    reason = "broker-unavailable"


class CannotServe(Unavailable):
    """The agent cannot serve calls now: try again later."""

    agent_id: UUID | None = None
    agent_name: str | None = None
    deployment_id: str | None = None

    def of(self, agent_id: UUID, agent_name: str, deployment_id: str | None = None) -> Self:
        """This error, of the agent and the deployment that the call was for."""
        self.agent_id, self.agent_name, self.deployment_id = agent_id, agent_name, deployment_id
        return self


class NothingServes(CannotServe):
    """Nothing serves this agent yet: register a pod, or promote a deployment."""

    reason = "nothing-serves"
    retry_after_seconds = 5


class DeploymentUnavailable(CannotServe):
    """The deployment cannot serve calls now: try again later, or promote another one."""

    reason = "deployment-unavailable"
    retry_after_seconds = 5


class DestinationDenied(PodiumError):
    """The agent's address may not be dialled: PODIUM_DIAL_NETWORKS, _HOSTS and _PORTS set which addresses may."""

    status = 502
    reason = "destination-denied"


class TargetMoved(Busy):
    """The rollback target changed while it was probed: try again."""

    reason = "rollback-target-moved"


class LostRace(PodiumError):
    """Another transaction changed the same rows first: run this one again."""

    status = 503
    reason = "lost-race"


# Constraints that a valid request can violate. The violation of any other constraint is a defect and is not translated.
CONSTRAINT_ERRORS: dict[str, type[PodiumError]] = {
    "agents_name_of_living_key": LostRace,
    "deployments_pkey": LostRace,
    "registrations_pkey": LostRace,
    "keys_name_of_living_key": LostRace,
    "deployments_production_not_deleted": ProductionCannotBeDeleted,
    "deployments_ready_has_address": DeploymentNotReady,
}
