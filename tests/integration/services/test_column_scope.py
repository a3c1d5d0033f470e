import asyncio
import re

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.storage.models import Agent, Deployment
from tests.integration.services.test_statement_count import counted
from tests.integration.services.world import World
from tests.support.factories import a_build, ago, incoming

ANNOUNCED = {
    "docker_image",
    "registration_metadata",
    "status",
    "status_reason",
    "status_changed_at",
    "acp_url",
    "rpc_path",
    "health_path",
    "error_style",
    "registered_at",
    "registered_message_id",
    "first_registered_at",
    "ready_at",
    "has_instances",
}
SERVING = {
    "production_deployment_id",
    "generation",
    "event_seq",
    "status",
    "status_reason",
    "auto_promote_paused",
    "promote_requested_at",
    "deleted_at",
    "updated_at",
}

_SOMEBODY_ELSE = text("""
UPDATE deployments SET is_production = true, promoted_at = now(), expires_at = NULL, sgp_deploy_id = 'theirs',
    helm_release_name = 'theirs', created_at = '2020-01-01T00:00:00Z'
WHERE id = 'v2'
""")


def written(statements: list[str], table: str) -> set[str]:
    """The columns of the table that these statements update."""
    columns: set[str] = set()
    for statement in statements:
        found = re.search(rf"UPDATE {table}\b.*?\bSET\b(.*?)(?:\bFROM\b|\bWHERE\b)", statement, re.DOTALL)
        if found:
            columns |= set(re.findall(r"(\w+)\s*=\s*", found[1]))
    return columns


async def test_a_registration_writes_only_its_own_columns(world: World) -> None:
    """G2: values that another transaction writes meanwhile stay, whatever row the registration had read before."""
    await world.register(a_build())
    await world.change(auto_promote="never")
    await world.arrive(deployment_id="v2", registered_at=ago(10))
    async with world.uncommitted() as session:
        await session.execute(_SOMEBODY_ELSE)
        waiting = asyncio.create_task(world.arrive(deployment_id="v2", acp_url="http://new"))
        await world.until_blocked()
    assert await waiting == "Registered"
    stored = await world.deployment("v2")
    assert stored.acp_url == "http://new"
    assert (stored.is_production, stored.sgp_deploy_id, stored.helm_release_name) == (True, "theirs", "theirs")
    assert stored.created_at.year == 2020
    tidy = text("UPDATE deployments SET is_production = false, promoted_at = NULL")
    await world.do(lambda session: session.execute(tidy))


async def test_each_transition_writes_its_own_columns(world: World, engine: AsyncEngine) -> None:
    """G2: no change writes a whole row; announcements, what serves, and settings have separate columns."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"), incoming(deployment_id="v3"))
    with counted(engine) as preview:
        await world.arrive(deployment_id="v2", acp_url="http://new")
    assert written(preview, "deployments") == ANNOUNCED
    assert written(preview, "agents") == set()
    with counted(engine) as promote:
        await world.promote("v2")
    assert written(promote, "deployments") == {"is_production", "promoted_at", "draining_since", "drained_at"}
    assert written(promote, "agents") == SERVING
    with counted(engine) as delete:
        await world.delete("v3")
    assert written(delete, "deployments") == {"expires_at", "draining_since"}
    assert written(delete, "agents") == SERVING
    with counted(engine) as legacy:
        await world.arrive(registered_at=ago(60))
    assert written(legacy, "deployments") == set()
    with counted(engine) as settings:
        await world.change(auto_promote="always")
    assert written(settings, "deployments") == set()
    assert not written(settings, "agents") & (SERVING - {"updated_at"})


@pytest.mark.parametrize("table", [Agent, Deployment])
async def test_the_columns_named_here_exist(table: type[Agent | Deployment]) -> None:
    """The sets above name existing columns."""
    expected = SERVING if table is Agent else ANNOUNCED
    assert expected <= set(table.__table__.columns.keys())
