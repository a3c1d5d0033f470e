"""Which rows an identity sees."""

from sqlalchemy import ColumnElement, or_, true
from sqlalchemy.orm import InstrumentedAttribute

from services.domain.identity import PREFIX_MARK, Identity


def visible(
    column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None], identity: Identity
) -> ColumnElement[bool]:
    """The condition that the agent's name in this column is one that the identity sees."""
    if identity.agents is None:
        return true()
    names = [each for each in identity.agents if not each.endswith(PREFIX_MARK)]
    prefixes = [each.removesuffix(PREFIX_MARK) for each in identity.agents if each.endswith(PREFIX_MARK)]
    return or_(column.in_(names), *(column.startswith(prefix, autoescape=True) for prefix in prefixes))
