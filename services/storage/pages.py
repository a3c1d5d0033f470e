"""Pages of lists."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Direction = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a list. `number` starts at 1; with `after`, the page begins after that id, whatever `number` is."""

    limit: int = 50
    number: int = 1
    order_by: str = "created_at"
    direction: Direction = "desc"
    after: UUID | None = None

    @property
    def offset(self) -> int:
        """The number of rows before this page."""
        return (self.number - 1) * self.limit
