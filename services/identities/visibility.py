"""Which rows an identity sees."""

from sqlalchemy import ColumnElement, or_, true
from sqlalchemy.orm import InstrumentedAttribute

from services.domain.identity import Identity


def visible(
    column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None], identity: Identity
) -> ColumnElement[bool]:
    """The condition that the agent's name in this column is one that the identity sees."""
    seen = identity.seen()
    if seen is None:
        return true()
    names, prefixes = seen
    return or_(column.in_(names), *(column.startswith(prefix, autoescape=True) for prefix in prefixes))
