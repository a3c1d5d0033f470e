"""Reads the routes of concurrent calls in batches. A call never joins a read that began before it."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from services.routing.conversations import ConversationTerms
from services.routing.routes import (
    READ_ROUTES,
    Route,
    RouteKey,
    Row,
    arguments,
    key_of,
    read_routes_of_conversations,
    route_of,
)
from services.settings import Settings
from services.storage.shared_reads import Outages, SharedReads

Admit = Callable[[str | None, int | None], Awaitable[None]]

_OUTAGES = Outages(
    away="Routes cannot be read: calls get 503.",
    away_action="routes.away",
    back="Routes are read again.",
    back_action="routes.back",
)


class RouteResolver(SharedReads[RouteKey]):
    """Resolves routes for one process, on a dedicated connection; use it as a context manager."""

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        super().__init__(settings, application_name=application_name, timeout=settings.route_timeout, outages=_OUTAGES)

    async def find(self, key: RouteKey, admit: Admit | None = None) -> Route:
        """The route of a key, read from the database after this call began.

        `admit` gets the name of the agent and the version of the keys in the same snapshot, both None if there is no
        such agent, before anything is told about it.
        Raises as `route_of` and `admit` do, and `Unavailable` if no answer comes within twice `route_timeout`.
        """
        row = await self.row(key)
        if admit is not None:
            await (admit(None, None) if row is None else admit(row["agent_name"], row["keys_version"]))
        return route_of(key, row)

    def _sql(self) -> tuple[str, ...]:
        return READ_ROUTES, read_routes_of_conversations(ConversationTerms.of(self._settings))

    def _chosen(self, keys: Collection[RouteKey]) -> tuple[int, tuple[Any, ...]]:
        # The statement with conversations costs a fifth more, so a batch without any uses the other one.
        return int(any(each.session is not None for each in keys)), arguments(keys)

    def _key_of(self, row: Row) -> RouteKey:
        return key_of(row)
