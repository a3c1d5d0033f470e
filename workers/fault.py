"""Whose fault it is that the database did not take a message."""

from enum import Enum, auto

from sqlalchemy.exc import DBAPIError

from services.errors import DatabaseFailed, Unavailable

# Of SQLSTATE: no such table, column or right. Our statements are the same for every message, so none is to fault_of.
SCHEMA_STATES = "42"


class Fault(Enum):
    """Whom to fault_of; in doubt is what may pass, or may happen each time with this message."""

    SERVER = auto()
    MESSAGE = auto()
    IN_DOUBT = auto()


def fault_of(error: Exception) -> Fault:
    """For what `in_transaction` has raised."""
    if isinstance(error, DatabaseFailed):
        return Fault.IN_DOUBT
    if isinstance(error, Unavailable) or has_no_schema(error):
        return Fault.SERVER
    return Fault.MESSAGE if isinstance(error, DBAPIError) else Fault.IN_DOUBT


def cannot_park(error: Exception) -> bool:
    """Whether this error of parking, which takes any message, means that nothing can be parked now."""
    return isinstance(error, Unavailable) or has_no_schema(error)


def has_no_schema(error: Exception) -> bool:
    """Whether 'podium migrate' has to run first."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(state, str) and state.startswith(SCHEMA_STATES)
