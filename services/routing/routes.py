"""Routes of RPC calls: their keys, the SQL that reads them, and the route or error that a row means."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec.structs import replace
from pydantic_core import from_json

from contracts.fields import ErrorStyle, joined
from services.domain.identity import NO_LIMITS, Limits, limits_of
from services.domain.state import Affinity, ConversationKeys, ForwardAuthorization
from services.errors import (
    AgentDeletedError,
    AgentNotFound,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentUnavailable,
    NothingServes,
)
from services.identities.key_reads import KEYS_VERSION
from services.routing.conversations import DEFAULT_TERMS, IS_OPEN, ISSUER_KEEPS, SEEN_AGAIN, ConversationTerms

Row = Mapping[str, Any]

# Of how many deployments the process keeps the instances in parsed form. They change when a pod comes, goes or fails.
_PARSED = 256


class RouteKey(msgspec.Struct, frozen=True):
    """The key of a route: an agent by id, a live agent by name, or one deployment of an agent."""

    agent_id: UUID | None = None
    name: str | None = None
    deployment_id: str | None = None
    session: bytes | None = None
    """The digest of the key of the call's conversation on this route, if it has one."""

    def in_session(self, session: bytes | None) -> "RouteKey":
        """The same key for a call in this conversation."""
        return self if session is None else replace(self, session=session)


class Instance(msgspec.Struct, frozen=True):
    """A Ready instance of a deployment, which a call can go to."""

    instance_id: str
    """Empty for the pod that names none."""
    acp_url: str
    rpc_path: str
    registered_at: datetime
    ready_at: datetime


class Route(msgspec.Struct, frozen=True):
    """The upstream address of a call: a deployment's, or a legacy agent's (`deployment_id` is None).

    If the deployment has `instances`, a call goes to one of them (`at`), and the address is one of theirs.
    """

    agent_id: UUID
    generation: int
    deployment_id: str | None
    acp_url: str
    rpc_path: str
    error_style: ErrorStyle
    registered_at: datetime | None = None
    """When the address was last announced."""
    session_known: bool = False
    """Whether the conversation in the key is open, and belongs to this deployment."""
    session_unseen: bool = False
    """Whether `last_seen_at` of the conversation is due for an update."""
    instances: tuple[Instance, ...] = ()
    """The Ready instances; empty for a deployment whose pods have never named one."""
    read_at: datetime | None = None
    """When the instances were read, by the clock that `ready_at` is from."""
    instance_id: str | None = None
    """The instance at the address, once one is chosen."""
    affinity: Affinity = "deployment"
    conversation_keys: ConversationKeys | None = None
    pinned_instance: str | None = None
    """The instance that the conversation belongs to."""
    moved_from: str | None = None
    """The deployment that the conversation belonged to, if it does not keep it any more."""
    forward_authorization: ForwardAuthorization = "strip"
    limits: Limits = NO_LIMITS
    """How much all callers together may call the agent."""
    seen_every: float | None = None
    """After how many seconds `last_seen_at` of the conversation is due for an update, while a call is in flight."""
    agent_name: str = ""

    @property
    def rpc_url(self) -> str:
        """The URL of the JSON-RPC endpoint."""
        return joined(self.acp_url, self.rpc_path)

    @property
    def origin(self) -> str:
        """Scheme, host and port of the address."""
        parts = urlsplit(self.acp_url)
        return f"{parts.scheme}://{parts.netloc}"

    def at(self, instance: Instance) -> "Route":
        """The route to this instance."""
        return replace(
            self,
            acp_url=instance.acp_url,
            rpc_path=instance.rpc_path,
            registered_at=instance.registered_at,
            instance_id=instance.instance_id,
        )

    def ready_for(self, instance: Instance) -> timedelta:
        """How long the instance had been Ready when the route was read."""
        assert self.read_at is not None
        return self.read_at - instance.ready_at


# Reads any number of routes in one statement, and so in one snapshot. $1: agent ids; $3: names; $5 and $6: pairs of
# agent and deployment ids. $2, $4 and $7 hold the session digest of each, or NULL. Each row found carries its key.
# The subquery in CASE runs only for deployments whose pods name their instance.
_READ = """
SELECT found.by_id, found.by_name, found.by_deployment, found.by_session, found.id AS agent_id,
       found.name AS agent_name, found.deleted_at, found.generation, found.legacy_acp_url, found.legacy_rpc_path,
       found.legacy_error_style, found.registered_at AS legacy_registered_at, d.id AS deployment_id, d.status,
       d.status_reason, d.expires_at, d.acp_url, d.rpc_path, d.error_style, d.registered_at,
       CASE WHEN d.has_instances THEN (
           SELECT json_agg(json_build_array(i.instance_id, i.acp_url, i.rpc_path, i.registered_at, i.ready_at))
           FROM instances i WHERE i.deployment_id = d.id AND i.status = 'Ready'
       ) END AS instances,
       CASE WHEN d.has_instances THEN clock_timestamp() END AS read_at, found.affinity, found.conversation_keys,
       found.forward_authorization, found.calls_per_second, found.calls_in_flight, {keys_version} AS keys_version,
       {of_conversation}
FROM (
    SELECT a.id AS by_id, NULL AS by_name, NULL AS by_deployment, lookup.session AS by_session,
           a.production_deployment_id AS target, a.*
    FROM unnest($1::uuid[], $2::bytea[]) AS lookup(agent_id, session) JOIN agents a ON a.id = lookup.agent_id
    UNION ALL
    SELECT NULL, a.name, NULL, lookup.session, a.production_deployment_id, a.*
    FROM unnest($3::text[], $4::bytea[]) AS lookup(name, session)
    CROSS JOIN LATERAL (SELECT * FROM agents WHERE name = lookup.name AND deleted_at IS NULL LIMIT 1) AS a
    UNION ALL
    SELECT a.id, NULL, lookup.deployment_id, lookup.session, lookup.deployment_id, a.*
    FROM unnest($5::uuid[], $6::text[], $7::bytea[]) AS lookup(agent_id, deployment_id, session)
    JOIN agents a ON a.id = lookup.agent_id
) AS found
{conversations}
LEFT JOIN deployments d ON d.id = {target} AND (found.by_deployment IS NULL OR d.agent_id = found.id)
"""

READ_ROUTES = _READ.format(
    keys_version=KEYS_VERSION,
    of_conversation="""false AS session_known, false AS session_unseen, NULL AS pinned_instance, NULL AS moved_from,
       NULL AS seen_every""",
    conversations="",
    target="found.target",
)


def read_routes_of_conversations(terms: ConversationTerms = DEFAULT_TERMS) -> str:
    """The statement for keys of which some have a conversation.

    A conversation goes to its deployment while that keeps it. A key with a deployment id always gets that deployment.
    """
    is_open, seen_again = _with_literals(IS_OPEN, terms), _with_literals(SEEN_AGAIN, terms)
    return _READ.format(
        keys_version=KEYS_VERSION,
        of_conversation=f"""coalesce(c.deployment_id = d.id AND {is_open}, false) AS session_known,
       coalesce(c.last_seen_at < clock_timestamp() - {seen_again}, false) AS session_unseen,
       c.instance_id AS pinned_instance,
       CASE WHEN c.deployment_id <> d.id THEN c.deployment_id END AS moved_from,
       extract(epoch FROM {seen_again})::float8 AS seen_every""",
        conversations="""LEFT JOIN conversations c
    ON c.agent_id = found.id AND c.key_sha256 = found.by_session AND found.affinity <> 'none'
LEFT JOIN deployments issuer ON issuer.id = c.deployment_id""",
        target=f"""CASE WHEN found.by_deployment IS NULL AND {ISSUER_KEEPS} AND {is_open}
    THEN issuer.id ELSE found.target END""",
    )


def _with_literals(condition: str, terms: ConversationTerms) -> str:
    """The condition about `c` and `a` in this statement, where the agent is called `found`."""
    return (
        condition.replace("a.conversation_", "found.conversation_")
        .replace("CAST(:idle AS interval)", f"interval '{terms.idle.total_seconds()} s'")
        .replace("CAST(:max_age AS interval)", f"interval '{terms.max_age.total_seconds()} s'")
    )


def arguments(keys: Collection[RouteKey]) -> tuple[list[Any], ...]:
    """The parameters of both statements."""
    agents = [each for each in keys if each.agent_id is not None and each.deployment_id is None]
    names = [each for each in keys if each.name is not None]
    pairs = [each for each in keys if each.agent_id is not None and each.deployment_id is not None]
    return (
        [each.agent_id for each in agents],
        [each.session for each in agents],
        [each.name for each in names],
        [each.session for each in names],
        [each.agent_id for each in pairs],
        [each.deployment_id for each in pairs],
        [each.session for each in pairs],
    )


def key_of(row: Row) -> RouteKey:
    """The key that a row belongs to."""
    return RouteKey(row["by_id"], row["by_name"], row["by_deployment"], row["by_session"])


def route_of(key: RouteKey, row: Row | None) -> Route:
    """The route that a row holds; `row` is None if no row was found.

    Raises `AgentNotFound`, `AgentDeletedError`, `NothingServes` or `DeploymentUnavailable`. For a key with a deployment
    id also `DeploymentNotFound` and `DeploymentDeletedError`; 404 comes before 410, and both before unavailable.
    """
    if row is None:
        raise AgentNotFound
    if key.deployment_id is not None:
        _check_preview(row)
    elif row["deleted_at"] is not None:
        raise AgentDeletedError
    if row["deployment_id"] is not None:
        return _of_deployment(row)
    if row["legacy_acp_url"] is None:
        raise NothingServes(
            f"Nothing serves agent {row['agent_name']} yet: register a pod of it, or promote one of its deployments."
        ).of(row["agent_id"], row["agent_name"])
    return Route(
        row["agent_id"],
        row["generation"],
        None,
        row["legacy_acp_url"],
        row["legacy_rpc_path"],
        row["legacy_error_style"],
        row["legacy_registered_at"],
        forward_authorization=row["forward_authorization"],
        limits=_limits(row),
        agent_name=row["agent_name"],
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
        unavailable = DeploymentUnavailable(
            f"Deployment {row['deployment_id']} of agent {row['agent_name']} is {row['status']}{because}."
        )
        raise unavailable.of(row["agent_id"], row["agent_name"], row["deployment_id"]).in_style(row["error_style"])
    return Route(
        row["agent_id"],
        row["generation"],
        row["deployment_id"],
        row["acp_url"],
        row["rpc_path"],
        row["error_style"],
        row["registered_at"],
        row["session_known"],
        row["session_unseen"],
        # Without a Ready instance the deployment's own address is left: that of its last one.
        _instances(row["instances"]) if row["instances"] else (),
        row["read_at"],
        affinity=row["affinity"],
        conversation_keys=row["conversation_keys"],
        pinned_instance=row["pinned_instance"],
        moved_from=row["moved_from"],
        forward_authorization=row["forward_authorization"],
        limits=_limits(row),
        seen_every=row["seen_every"],
        agent_name=row["agent_name"],
    )


def _limits(row: Row) -> Limits:
    return limits_of(row["calls_per_second"], row["calls_in_flight"])


@lru_cache(_PARSED)
def _instances(read: str) -> tuple[Instance, ...]:
    """The instances as the database returns them."""
    return tuple(
        Instance(
            instance_id, acp_url, rpc_path, datetime.fromisoformat(registered_at), datetime.fromisoformat(ready_at)
        )
        for instance_id, acp_url, rpc_path, registered_at, ready_at in from_json(read)
    )
