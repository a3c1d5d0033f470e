"""The page of one version: its pods and their probes, its difference to production, and what happened to it."""

from dataclasses import replace
from typing import Any

from litestar import get
from litestar.params import FromPath
from litestar.response import Template
from sqlalchemy.ext.asyncio import AsyncSession

from api.console.agent import Version
from api.console.differences import differences
from api.console.page import OnPage
from api.http.parameters import agent_uuid, deployment_key
from api.http.responses import InstanceAnswer
from services.agents.overview import VersionCounts, version_counts
from services.agents.queries import get_agent, get_deployment
from services.calls.recent import recent_calls
from services.events.recent import recent_events
from services.health.probe_states import probe_states
from services.registration.inbox import Lifetime, recent_registrations
from services.storage.database import in_transaction
from services.storage.pages import Page as Rows

SHOWN = 20


@get("/console/agents/{agent_id:str}/versions/{version_id:str}", include_in_schema=False)
async def show_version(agent_id: FromPath[str], version_id: FromPath[str], page: OnPage) -> Template:
    """One version, deleted or not."""
    uuid, key = agent_uuid(agent_id), deployment_key(version_id)
    terms = page.resources.terms

    async def work(session: AsyncSession) -> dict[str, Any]:
        agent = (await get_agent(session, uuid)).agent
        page.require_agent(agent.name)
        view = await get_deployment(session, uuid, key, terms)
        pointer = agent.production_deployment_id
        production = await get_deployment(session, uuid, pointer, terms) if pointer not in {None, key} else None
        counts = await version_counts(session, [key], terms)
        announced = await recent_registrations(
            session, replace(Lifetime.of(agent), deployment_id=key), Rows(limit=SHOWN)
        )
        recent = await recent_calls(session, [uuid])
        return {
            "agent": agent,
            "hour": recent.of_version(uuid, key),
            "calls_complete": recent.is_complete,
            "version": Version.of(view, counts.get(key, VersionCounts(0, 0, 0))),
            "deployment": view.deployment,
            "periods": view.production_periods,
            "pods": InstanceAnswer.all_of(view),
            "probes": await probe_states(session, key),
            "production": production.deployment if production else None,
            "differences": differences(view.deployment, production.deployment) if production else None,
            "announced": announced,
            "events": await recent_events(session, uuid, subject=key, limit=SHOWN),
        }

    found = await in_transaction(page.resources.reads, work)
    base = f"/console/agents/{uuid}"
    return page.show(
        "version.html",
        base=base,
        own_url=f"{base}/versions/{key}",
        cursor=str(found["agent"].event_seq),
        **found,
    )


ROUTES = [show_version]
