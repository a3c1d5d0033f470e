"""Lists as the API asks for them, on any session."""

from collections.abc import Sequence

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from services.agents.queries import AgentView, agent_view, agents_question
from services.domain.identity import EVERYBODY, Identity
from services.storage.pages import Page
from services.storage.shared_lists import Question


async def asked(session: AsyncSession, question: Question) -> Sequence[RowMapping]:
    """The rows of a question; JSON is text."""
    rows = await (await session.connection()).exec_driver_sql(question.sql, question.values)
    return rows.mappings().all()


async def list_agents(session: AsyncSession, page: Page, identity: Identity = EVERYBODY) -> list[AgentView]:
    """One page of agents."""
    rows = await asked(session, agents_question(page, identity))
    return [
        agent_view({name: value for name, value in row.items() if name != "cursor"})
        for row in rows
        if row["id"] is not None
    ]
