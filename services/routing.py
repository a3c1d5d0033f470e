"""Where an RPC goes: what is asked for, how it is read, and what a row means. `services.route_reads` reads it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from contracts.fields import ErrorStyle, joined
from services.errors import (
    AgentDeletedError,
    AgentNotFound,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentUnavailable,
    NothingServes,
)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose route: of an agent by its id or by its name while it lives, or of one deployment of the agent."""

    agent_id: UUID | None = None
    name: str | None = None
    deployment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One address to dial: of a deployment, or (`deployment_id` None) of a legacy agent."""

    agent_id: UUID
    generation: int
    deployment_id: str | None
    acp_url: str
    rpc_path: str
    error_style: ErrorStyle
    registered_at: datetime | None = None
    """When the address was announced last."""

    @property
    def rpc_url(self) -> str:
        """Where JSON-RPC goes."""
        return joined(self.acp_url, self.rpc_path)


# Any number of routes in one statement, so in one snapshot: $1 agents' ids, $2 names, $3 and $4 pairs of agent and
# deployment. One row for each that is found, beside what it was asked by.
READ_ROUTES = """
SELECT asked.by_id, asked.by_name, asked.by_deployment, asked.id AS agent_id, asked.name AS agent_name,
       asked.deleted_at, asked.generation, asked.legacy_acp_url, asked.legacy_rpc_path, asked.legacy_error_style,
       asked.registered_at AS legacy_registered_at, d.id AS deployment_id, d.status, d.status_reason, d.expires_at,
       d.acp_url, d.rpc_path, d.error_style, d.registered_at
FROM (
    SELECT a.id AS by_id, NULL AS by_name, NULL AS by_deployment, a.production_deployment_id AS wanted, a.*
    FROM agents a WHERE a.id = ANY($1::uuid[])
    UNION ALL
    SELECT NULL, a.name, NULL, a.production_deployment_id, a.*
    FROM agents a WHERE a.name = ANY($2::text[]) AND a.deleted_at IS NULL
    UNION ALL
    SELECT pair.agent_id, NULL, pair.deployment_id, pair.deployment_id, a.*
    FROM unnest($3::uuid[], $4::text[]) AS pair(agent_id, deployment_id) JOIN agents a ON a.id = pair.agent_id
) AS asked
LEFT JOIN deployments d ON d.id = asked.wanted AND d.agent_id = asked.id
"""


def arguments(wanted: Collection[Wanted]) -> tuple[list[UUID], list[str], list[UUID], list[str]]:
    """What `READ_ROUTES` takes."""
    agents = [each.agent_id for each in wanted if each.agent_id is not None and each.deployment_id is None]
    names = [each.name for each in wanted if each.name is not None]
    pairs = [(each.agent_id, each.deployment_id) for each in wanted if each.agent_id and each.deployment_id]
    return agents, names, [agent for agent, _ in pairs], [deployment for _, deployment in pairs]


def asked_by(row: Row) -> Wanted:
    """What a row of `READ_ROUTES` answers."""
    return Wanted(row["by_id"], row["by_name"], row["by_deployment"])


def route_of(wanted: Wanted, row: Row | None) -> Route:
    """The way that the row names; None is a row that was not found.

    Raises `AgentNotFound`, `AgentDeletedError`, `NothingServes`, `DeploymentUnavailable`; for one deployment 404, 410
    or `DeploymentUnavailable` in that order.
    """
    if row is None:
        raise AgentNotFound
    if wanted.deployment_id is not None:
        _check_preview(row)
    elif row["deleted_at"] is not None:
        raise AgentDeletedError
    if row["deployment_id"] is not None:
        return _of_deployment(row)
    if row["legacy_acp_url"] is None:
        raise NothingServes(
            f"Nothing serves agent {row['agent_name']} yet: register a pod of it, or promote one of its deployments."
        )
    return Route(
        row["agent_id"],
        row["generation"],
        None,
        row["legacy_acp_url"],
        row["legacy_rpc_path"],
        row["legacy_error_style"],
        row["legacy_registered_at"],
    )


def _check_preview(row: Row) -> None:
    if row["deployment_id"] is None:
        raise DeploymentNotFound
    if row["deleted_at"] is not None:
        raise AgentDeletedError().in_style(row["error_style"])
    if row["expires_at"] is not None:
        raise DeploymentDeletedError().in_style(row["error_style"])


def _of_deployment(row: Row) -> Route:
    if row["status"] != "Ready":
        because = f": {row['status_reason']}" if row["status_reason"] else ""
        raise DeploymentUnavailable(
            f"Deployment {row['deployment_id']} of agent {row['agent_name']} is {row['status']}{because}."
        ).in_style(row["error_style"])
    return Route(
        row["agent_id"],
        row["generation"],
        row["deployment_id"],
        row["acp_url"],
        row["rpc_path"],
        row["error_style"],
        row["registered_at"],
    )
