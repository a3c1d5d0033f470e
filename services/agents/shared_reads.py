"""Single agents, read together for the callers that ask for them at the same time."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Text, Uuid, bindparam, cast, func, null
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY

from services.agents.queries import AGENTS, AgentView, agent_view
from services.errors import AgentNotFound
from services.settings import Settings
from services.storage.driver import Row
from services.storage.models import Agent
from services.storage.shared_reads import Outages, SharedReads

_OUTAGES = Outages(
    away="Agents cannot be read: reads get 503.",
    away_action="reads.away",
    back="Agents are read again.",
    back_action="reads.back",
)

_IDS = func.unnest(bindparam("ids", type_=ARRAY(Uuid))).table_valued("key").render_derived(name="wanted")
_NAMES = func.unnest(bindparam("names", type_=ARRAY(Text))).table_valued("key").render_derived(name="named")
# Each looks up one row per key in an index, whatever the planner knows about the tables.
_READ = str(
    AGENTS.add_columns(_IDS.c.key.label("by_id"), cast(null(), Text).label("by_name"))
    .join(_IDS, _IDS.c.key == Agent.id)
    .union_all(
        AGENTS.add_columns(cast(null(), Uuid), _NAMES.c.key)
        .join(_NAMES, _NAMES.c.key == Agent.name)
        .where(Agent.deleted_at.is_(None))
    )
    .compile(dialect=postgresql.asyncpg.dialect())  # type: ignore[no-untyped-call]
)


class AgentReads(SharedReads[UUID | str]):
    """Reads agents for one process, on a dedicated connection; use it as a context manager."""

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        super().__init__(
            settings, application_name=application_name, timeout=settings.database_timeout / 2, outages=_OUTAGES
        )

    async def by_id(self, agent_id: UUID) -> AgentView:
        """The agent, deleted or not. Raises `AgentNotFound`, `Unavailable`."""
        return _view(await self.row(agent_id))

    async def by_name(self, name: str) -> AgentView:
        """The agent of this name that is not deleted. Raises `AgentNotFound`, `Unavailable`."""
        return _view(await self.row(name))

    def _sql(self) -> tuple[str, ...]:
        return (_READ,)

    def _chosen(self, keys: Collection[UUID | str]) -> tuple[int, tuple[Any, ...]]:
        names = [key for key in keys if isinstance(key, str)]
        return 0, ([key for key in keys if not isinstance(key, str)], names)

    def _key_of(self, row: Row) -> UUID | str:
        key: UUID | str = row["by_name"] if row["by_id"] is None else row["by_id"]
        return key


def _view(row: Row | None) -> AgentView:
    if row is None:
        raise AgentNotFound
    return agent_view({name: value for name, value in row.items() if name not in {"by_id", "by_name"}})
