"""Attributes that several kinds of spans share."""

from uuid import UUID


def agent_attributes(name: str, agent_id: UUID, deployment_id: str | None = None) -> dict[str, str | int | bool]:
    """An agent, and its deployment if it is known (https://opentelemetry.io/docs/specs/semconv/gen-ai/)."""
    attributes: dict[str, str | int | bool] = {"gen_ai.agent.name": name, "gen_ai.agent.id": str(agent_id)}
    if deployment_id is not None:
        attributes["gen_ai.agent.version"] = deployment_id
    return attributes
