"""The first page: all agents, what serves each of them, since when, and whether it is well."""

from typing import Annotated, Any, get_args
from urllib.parse import urlencode

from litestar import get
from litestar.params import QueryParameter
from litestar.response import Template
from sqlalchemy.ext.asyncio import AsyncSession

from api.console.page import HOME, OnPage, go
from services.agents.overview import AgentLines, Shown, agent_counts, agent_lines
from services.calls.recent import RecentCalls, recent_calls
from services.errors import InvalidRequest
from services.events.log import event_cursor
from services.storage.database import in_transaction

PAGE = 50
SEARCH_MAX = 100
KINDS: dict[Shown, str] = {
    "all": "All",
    "ready": "Ready",
    "failed": "Failed",
    "idle": "Nothing serves",
    "paused": "Automation paused",
    "previews": "With previews",
}

Text = Annotated[str, QueryParameter(max_length=SEARCH_MAX)]


@get("/console", include_in_schema=False)
async def show_home() -> Any:  # noqa: ANN401 - the way to another page
    """The first page."""
    return go(HOME)


@get(HOME, include_in_schema=False)
async def show_agents(page: OnPage, q: Text = "", show: Text = "all", after: Text = "", before: Text = "") -> Template:
    """The agents whose name has `q`, in the order of their names, 50 at a time."""
    shown = next((kind for kind in get_args(Shown) if kind == show), None)
    if shown is None or "\0" in q + after + before:
        raise InvalidRequest("show must be one of the kinds on the page.", field="show")
    search = q.strip().lower()

    async def work(session: AsyncSession) -> tuple[str, dict[str, int], AgentLines, RecentCalls]:
        cursor, counts = await event_cursor(session), await agent_counts(session, page.identity)
        found = await agent_lines(
            session, identity=page.identity, search=search, shown=shown, after=after, before=before, limit=PAGE
        )
        return cursor, counts, found, await recent_calls(session, [line.id for line in found.lines])

    cursor, counts, found, recent = await in_transaction(page.resources.reads, work)
    kept = {name: value for name, value in (("q", search), ("show", shown)) if value not in {"", "all"}}

    def linked(**more: str) -> str:
        query = urlencode({**kept, **more})
        return f"{HOME}?{query}" if query else HOME

    lines = found.lines
    return page.show(
        "agents.html",
        cursor=cursor,
        counts=counts,
        lines=lines,
        calls={line.id: recent.of_agent(line.id) for line in lines},
        calls_complete=recent.is_complete,
        kinds=[(kind, name, counts.get(kind), linked(show=kind)) for kind, name in KINDS.items()],
        shown=shown,
        search=search,
        own_url=linked(**{name: value for name, value in (("after", after), ("before", before)) if value}),
        earlier=linked(before=lines[0].name) if lines and found.has_earlier else None,
        later=linked(after=lines[-1].name) if lines and found.has_later else None,
    )


ROUTES = [show_home, show_agents]
