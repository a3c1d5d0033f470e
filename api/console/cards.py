"""The agent cards of a version and of production side by side, fetched by the gateway's rules when a page asks."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from litestar import get
from litestar.params import FromPath
from litestar.response import Template
from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncSession

from api.console.differences import Difference, card_differences
from api.console.page import OnPage, Page
from api.gateway.agent_cards import CARD_MAX_BYTES, CARD_PATH
from api.gateway.agent_documents import DocumentMissing, fetch_document
from api.http.parameters import agent_uuid, deployment_key
from services.agents.queries import get_agent, get_deployment
from services.domain.state import AgentState
from services.errors import PodiumError
from services.routing.routes import RouteKey
from services.storage.database import in_transaction

# A reader waits for both cards together.
SECONDS = 3.0
# Comparing larger cards would keep other requests waiting.
COMPARED_MAX_BYTES = 64 * 1024
DIFFERENCES_MAX = 200


@dataclass(frozen=True, slots=True)
class Card:
    """What a version answered: its card, none, or why that is unknown."""

    content: dict[str, Any] | None = None
    unknown: str | None = None

    @property
    def skills(self) -> int:
        """How many skills it names."""
        found = (self.content or {}).get("skills")
        return len(found) if isinstance(found, list) else 0


@get("/console/agents/{agent_id:str}/versions/{version_id:str}/cards", include_in_schema=False)
async def show_cards(agent_id: FromPath[str], version_id: FromPath[str], page: OnPage) -> Template:
    """What is different between the cards. Fetching them follows the rules of calls, and ends after three seconds."""
    uuid, key = agent_uuid(agent_id), deployment_key(version_id)

    async def work(session: AsyncSession) -> AgentState:
        agent = (await get_agent(session, uuid)).agent
        page.require_agent(agent.name)
        await get_deployment(session, uuid, key, page.resources.terms)
        return agent

    agent = await in_transaction(page.resources.reads, work)
    production, version = await asyncio.gather(
        _within(_card(page, RouteKey(agent_id=uuid))),
        _within(_card(page, RouteKey(agent_id=uuid, deployment_id=key))),
    )
    both = production.unknown is None and version.unknown is None
    found: list[Difference] = card_differences(production.content, version.content) if both else []
    base = f"/console/agents/{uuid}"
    return page.show(
        "cards.html",
        agent=agent,
        base=base,
        deployment_id=key,
        production=production,
        version=version,
        differences=found[:DIFFERENCES_MAX],
        more=max(0, len(found) - DIFFERENCES_MAX),
    )


async def _within(fetching: Awaitable[Card]) -> Card:
    try:
        async with asyncio.timeout(SECONDS):
            return await fetching
    except TimeoutError:
        return Card(unknown=f"It did not send its card within {SECONDS:.0f} s.")


async def _card(page: Page, key: RouteKey) -> Card:
    gateway = page.resources.gateway
    try:
        route = await gateway.routes.find(key)
        content, _ = await fetch_document(page.request, gateway, route, CARD_PATH, CARD_MAX_BYTES)
        if len(content) > COMPARED_MAX_BYTES:
            return Card(unknown=f"Its card is too large to compare: more than {COMPARED_MAX_BYTES // 1024} KiB.")
        found = from_json(content, allow_inf_nan=False)
    except DocumentMissing:
        return Card()
    except PodiumError as error:
        return Card(unknown=error.message)
    except ValueError:
        return Card(unknown="Its card is not valid JSON.")
    return Card(content=found) if isinstance(found, dict) else Card(unknown="Its card is not a JSON object.")


ROUTES = [show_cards]
