"""What became of announcements: asked for by agent, and by name while there is no agent yet."""

import re
from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from litestar import get
from litestar.params import FromPath, QueryParameter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.parameters import Limit, PageNumber, agent_uuid
from api.http.problems import documented
from api.resources import Injected
from contracts.fields import AGENT_NAME_PATTERN
from services.agents.queries import get_agent
from services.errors import InvalidRequest
from services.registration.inbox import InboxRow, Lifetime, recent_registrations
from services.storage.database import in_transaction
from services.storage.pages import Page

AgentNamed = Annotated[
    str | None, QueryParameter(description="Only announcements for this name, which no agent needs to have.")
]


class RegistrationAnswer(BaseModel):
    """One announcement, and what became of it."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    message_id: UUID | None = Field(description="Null if the message had none that could be read.")
    agent_name: str | None
    deployment_id: str | None
    registered_at: datetime | None = Field(description="When the pod made it, as it was stored.")
    received_at: datetime
    outcome: Literal["Registered", "Stale", "Shadowed", "Rejected", "Parked"]
    reason: str | None = Field(description="Why it was refused.")
    parked_id: UUID | None = Field(description="Of the parked message, where nothing but that is left of it.")
    attempts: int = Field(description="How often it was parked for this reason.")

    @classmethod
    def of(cls, row: InboxRow) -> Self:
        """The answer for a row of the inbox."""
        return cls.model_validate(row)


@get("/registrations", responses=documented())
async def read_registrations(
    *, resources: Injected, agent: AgentNamed = None, limit: Limit = 50, page_number: PageNumber = 1
) -> list[RegistrationAnswer]:
    """Recent announcements and their outcomes, newest first; of one name, or of all."""
    if agent is not None and not re.fullmatch(AGENT_NAME_PATTERN, agent):
        raise InvalidRequest("agent must be an agent's name: small letters, digits and hyphens.", field="agent")
    page = Page(limit=limit, number=page_number)
    rows = await in_transaction(resources.reads, lambda session: recent_registrations(session, Lifetime(agent), page))
    return [RegistrationAnswer.of(row) for row in rows]


@get("/agents/{agent_id:str}/registrations", responses=documented(404))
async def read_registrations_of_agent(
    agent_id: FromPath[str], resources: Injected, limit: Limit = 50, page_number: PageNumber = 1
) -> list[RegistrationAnswer]:
    """Recent announcements of one agent, newest first; those for another agent of its name are left out."""
    wanted = agent_uuid(agent_id)
    page = Page(limit=limit, number=page_number)

    async def work(session: AsyncSession) -> list[InboxRow]:
        lifetime = Lifetime.of((await get_agent(session, wanted)).agent)
        return await recent_registrations(session, lifetime, page)

    return [RegistrationAnswer.of(row) for row in await in_transaction(resources.reads, work)]


ROUTES = [read_registrations, read_registrations_of_agent]
