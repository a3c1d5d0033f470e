"""Classification of a failed transaction: is the server at fault, or the message?"""

from enum import Enum, auto

from sqlalchemy.exc import DBAPIError

from services.errors import DatabaseFailed, StatementTimeout, Unavailable

# SQLSTATE class 42: a table, a column or a privilege is missing. All messages use the same statements, so no message
# is at fault.
SCHEMA_STATES = "42"


class Fault(Enum):
    """Who is at fault. IN_DOUBT: the failure may be temporary, or this message may cause it each time."""

    SERVER = auto()
    MESSAGE = auto()
    IN_DOUBT = auto()


def fault_of(error: Exception) -> Fault:
    """Who caused this error of `in_transaction`."""
    if isinstance(error, DatabaseFailed | StatementTimeout):
        return Fault.IN_DOUBT
    if isinstance(error, Unavailable) or has_no_schema(error):
        return Fault.SERVER
    return Fault.MESSAGE if isinstance(error, DBAPIError) else Fault.IN_DOUBT


def cannot_park(error: Exception) -> bool:
    """Whether this error of parking a message means that no message can be parked now."""
    return isinstance(error, Unavailable) or has_no_schema(error)


def has_no_schema(error: Exception) -> bool:
    """Whether the error means that 'podium migrate' has to run first."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(state, str) and state.startswith(SCHEMA_STATES)
