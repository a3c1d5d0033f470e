"""Which rows an identity sees."""

from sqlalchemy import ColumnElement, any_, bindparam, or_, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import Boolean, Text

from services.domain.identity import Identity

# The parameters of the condition for an identity of some agents.
_NAMES, _PREFIXES = "seen_names", "seen_prefixes"


def visible(
    column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None], identity: Identity
) -> ColumnElement[bool]:
    """The condition that the agent's name in this column is one that the identity sees."""
    seen = identity.seen()
    if seen is None:
        return true()
    names, prefixes = seen
    return or_(
        column == any_(bindparam(_NAMES, names, type_=ARRAY(Text))),
        column.op("^@", return_type=Boolean)(any_(bindparam(_PREFIXES, prefixes, type_=ARRAY(Text)))),
    )


def seen_parameters(identity: Identity) -> dict[str, tuple[str, ...]]:
    """The parameters of `visible`, for a statement that was made for another identity of some agents."""
    seen = identity.seen()
    return {} if seen is None else {_NAMES: tuple(seen[0]), _PREFIXES: tuple(seen[1])}
