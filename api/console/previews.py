"""What an action will do, in sentences, before it is confirmed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from api.console.agent import Version
from services.domain.state import AgentState
from services.promotion.rollback_targets import Target


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action will do. With `refusal`, it would be refused now, for this reason."""

    title: str
    button: str
    effects: list[str]
    refusal: str | None = None
    dangerous: bool = False
    targets: Sequence[Target] = field(default=())
    confirm_name: bool = False
    offers_force: str | None = None


def of_promote(agent: AgentState, serves: str, production: Version | None, version: Version) -> Preview:
    """Of putting a version into production."""
    deployment = version.view.deployment
    effects = [
        f"Every new call to {agent.name} goes to {deployment.id} instead of {serves}.",
        "Calls in flight end where they are; none fails because of the change.",
        f"The generation becomes {agent.generation + 1}, and consumers of events are told.",
    ]
    if production is not None and production.counts.conversations:
        effects.append(
            f"{_conversations(production.counts.conversations)} with {production.view.deployment.id} stay there until "
            "they end."
        )
    if agent.auto_promote_paused:
        effects.append("The pause of automatic promotion ends.")
    refusal = None
    if deployment.is_production:
        refusal = "This version is in production already."
    elif deployment.expires_at is not None:
        refusal = "This version is deleted."
    elif deployment.status != "Ready":
        refusal = f"This version is {deployment.status}, and only a Ready one can be promoted."
    return Preview(f"Promote {deployment.id}", "Promote", effects, refusal)


def of_rollback(agent: AgentState, serves: str, targets: Sequence[Target]) -> Preview:
    """Of going back to what served before."""
    effects = [
        f"Every new call to {agent.name} goes to the chosen target instead of {serves}.",
        "The target is asked for an answer first. If it does not answer, nothing changes.",
        f"The generation becomes {agent.generation + 1}, and consumers of events are told.",
        "Automatic promotion is paused until somebody promotes or ends the pause.",
    ]
    refusal = None if targets else "Nothing served before that could serve again."
    return Preview(
        f"Roll back {agent.name}", "Roll back", effects, refusal, targets=targets,
        offers_force="Roll back even if the target does not answer",
    )  # fmt: skip


def of_delete(version: Version) -> Preview:
    """Of deleting a version."""
    deployment, still_open = version.view.deployment, version.counts.conversations
    effects = [
        f"Calls to {deployment.id} are answered with 410 from now on.",
        "Lists leave it out. Its history stays.",
        "It cannot be brought back: a new version needs a new id.",
    ]
    draining = deployment.draining_since is not None and still_open > 0
    if draining:
        effects.append(f"{_conversations(still_open)} with it would end now.")
    refusal = "Production cannot be deleted: promote another version first." if deployment.is_production else None
    if deployment.expires_at is not None:
        refusal = "This version is deleted already."
    return Preview(
        f"Delete {deployment.id}", "Delete version", effects, refusal, dangerous=True,
        offers_force="Delete it although conversations are open" if draining else None,
    )  # fmt: skip


def of_pause(agent: AgentState) -> Preview:
    """Of pausing automatic promotion."""
    effects = [
        "New versions become previews; none goes to production by itself.",
        "An explicit promote ends the pause.",
    ]
    refusal = "Automatic promotion is paused already." if agent.auto_promote_paused else None
    return Preview("Pause automatic promotion", "Pause", effects, refusal)


def of_resume(agent: AgentState) -> Preview:
    """Of ending the pause."""
    policy = {
        "never": "The policy is “never”: versions go to production by hand only.",
        "first": "The policy is “first”: a version goes to production by itself if nothing serves the agent.",
        "always": "The policy is “always”: the next version that becomes Ready goes to production by itself.",
    }
    refusal = None if agent.auto_promote_paused else "Automatic promotion is not paused."
    return Preview("Resume automatic promotion", "Resume", [policy[agent.auto_promote]], refusal)


def of_delete_agent(agent: AgentState, serves: str) -> Preview:
    """Of deleting an agent."""
    effects = [
        f"Every call to {agent.name} is answered with 410 from now on; it is served by {serves} now.",
        "All its versions are deleted with it.",
        "The name is free: a later registration makes a new agent.",
    ]
    refusal = "This agent is deleted already." if agent.deleted_at is not None else None
    return Preview(f"Delete {agent.name}", "Delete agent", effects, refusal, dangerous=True, confirm_name=True)


def _conversations(number: int) -> str:
    shown = "1,000 or more" if number >= 1000 else str(number)  # noqa: PLR2004 - counted up to here
    return "1 open conversation" if number == 1 else f"{shown} open conversations"
