"""Which part of a list a query returns."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Direction = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list: pages start at 1; `after` (an id) pages without counting."""

    limit: int = 50
    number: int = 1
    order_by: str = "created_at"
    direction: Direction = "desc"
    after: UUID | None = None

    @property
    def offset(self) -> int:
        """How many rows come before this page."""
        return (self.number - 1) * self.limit
