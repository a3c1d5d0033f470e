"""Deployments whose pods name their instance, as rows of the database."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text

from services.storage.database import Sessions

_MANY = text("UPDATE deployments SET has_instances = true WHERE id = :deployment_id")
_ADD = text("""
INSERT INTO instances (deployment_id, instance_id, agent_id, acp_url, rpc_path, health_path, status, status_changed_at,
    registered_at, registered_message_id, created_at, ready_at)
SELECT id, :instance_id, agent_id, :acp_url, rpc_path, health_path, 'Ready', at, clock_timestamp(), gen_random_uuid(),
    at, at
FROM deployments, LATERAL (SELECT clock_timestamp() - CAST(:ready_for AS interval) AS at) AS ready
WHERE id = :deployment_id
ON CONFLICT (deployment_id, instance_id) DO UPDATE SET acp_url = excluded.acp_url, status = 'Ready',
    registered_at = excluded.registered_at, ready_at = excluded.ready_at
""")
_FAIL = text("""
UPDATE instances SET status = 'Failed', status_changed_at = clock_timestamp()
WHERE deployment_id = :deployment_id AND instance_id = :instance_id
""")


@dataclass(frozen=True)
class Instances:
    """Writes instances of deployments that exist, each in its own transaction."""

    sessions: Sessions

    async def add(
        self, deployment_id: str, urls: Mapping[str, str], *, ready_for: timedelta = timedelta(minutes=1)
    ) -> None:
        """Announce Ready instances, by id; one that exists is announced again."""
        async with self.sessions() as session, session.begin():
            await session.execute(_MANY, {"deployment_id": deployment_id})
            for instance_id, url in urls.items():
                values = {"deployment_id": deployment_id, "instance_id": instance_id, "acp_url": url}
                await session.execute(_ADD, {**values, "ready_for": ready_for})

    async def fail(self, deployment_id: str, instance_id: str) -> None:
        """Set an instance Failed."""
        async with self.sessions() as session, session.begin():
            await session.execute(_FAIL, {"deployment_id": deployment_id, "instance_id": instance_id})
