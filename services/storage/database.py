"""Access to PostgreSQL: engines, sessions, and `in_transaction`, which runs every transaction."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import structlog
from pydantic_core import from_json
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from services.errors import (
    CONSTRAINT_ERRORS,
    Busy,
    DatabaseFailed,
    LostRace,
    PodiumError,
    StatementTimeout,
    Unavailable,
)
from services.settings import Settings
from services.tls import database_options

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 5
CLOSE_TIMEOUT_SECONDS = 2
MAX_ATTEMPTS = 10
BACKOFF_SECONDS = 0.01
# Added to the server's statement timeout, for a server that does not respond at all.
COMMAND_TIMEOUT_MARGIN_SECONDS = 5

# By SQLSTATE: serialization failure, deadlock, lock not available, statement timeout.
STATE_ERRORS: dict[str, type[PodiumError]] = {
    "40001": LostRace,
    "40P01": LostRace,
    "55P03": Busy,
    "57014": StatementTimeout,
}
# SQLSTATE classes and codes caused by the server's state, not by the statement: connection exception, read-only (a
# standby, before or after a failover), session ended while idle, no authorization, no such database, insufficient
# resources, operator intervention, system error.
SERVER_STATES = ("08", "25006", "25P03", "28", "3D", "53", "57", "58")
# Internal errors. They may pass (with a full disk, no session can start: "could not write init file"), or come from a
# damaged page that only some statements read.
INTERNAL_STATES = "XX"

_EVENTS_WRITTEN = "podium.events_written"

log = structlog.get_logger(__name__)


def async_url(database_url: str) -> URL:
    """The URL with the asyncpg driver, whatever driver the setting names."""
    return make_url(database_url).set(drivername="postgresql+asyncpg")


def make_engine(
    settings: Settings,
    *,
    application_name: str,
    pool_size: int | None = None,
    idle_session_timeout: timedelta = timedelta(0),
    statement_timeout: timedelta | None = None,
) -> AsyncEngine:
    """An engine that connects on first use; close it with `close_engine`.

    Of both timeouts, zero means none. The settings say how long a statement may take if `statement_timeout` is None.
    """
    statement_timeout = settings.statement_timeout if statement_timeout is None else statement_timeout
    command_timeout = statement_timeout.total_seconds() + COMMAND_TIMEOUT_MARGIN_SECONDS if statement_timeout else None
    milliseconds = {
        "idle_session_timeout": idle_session_timeout,
        "lock_timeout": settings.lock_timeout,
        "statement_timeout": statement_timeout,
        "idle_in_transaction_session_timeout": statement_timeout,
    }
    return create_async_engine(
        async_url(settings.database_url.get_secret_value()),
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        json_deserializer=from_json,
        # Errors are logged, and parameters can be secrets.
        hide_parameters=True,
        connect_args={
            **database_options(settings),
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": command_timeout,
            "server_settings": {
                "application_name": application_name,
                # A generic plan made while the tables were empty stays in use: it made batches four times slower.
                # Without planning, one registration would take 44 % less of the server's time, in a batch of 200 22 %.
                "plan_cache_mode": "force_custom_plan",
                **{name: str(int(limit.total_seconds() * 1000)) for name, limit in milliseconds.items()},
            },
        },
    )


async def close_engine(engine: AsyncEngine) -> None:
    """Close its connections; wait at most two seconds for a server that does not respond."""
    with suppress(SQLAlchemyError, OSError):
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await engine.dispose()


class Sessions(async_sessionmaker[AsyncSession]):
    """Creates sessions for `in_transaction`, and holds the options of all transactions of a process.

    `timeout` bounds a whole transaction (None: no limit). `on_events` is called after each commit that wrote events,
    so no caller can forget to wake the relay.
    """

    def __init__(
        self, engine: AsyncEngine, *, timeout: timedelta | None = None, on_events: Callable[[], None] | None = None
    ) -> None:
        super().__init__(engine, expire_on_commit=False)
        self.timeout = timeout.total_seconds() if timeout is not None else None
        self.on_events = on_events


async def in_transaction(
    sessions: Sessions, work: Callable[[AsyncSession], Awaitable[T]], *, seconds: float | None = None
) -> T:
    """Run `work` in a transaction, commit, and return its result. Others see nothing of it before the commit.

    Runs `work` again after a deadlock, a serialization failure or a lost race, so `work` must only use its session.
    Raises `Busy` if a lock is not free in time, and `Unavailable` if the database is unavailable or does not respond
    within `seconds`, by default `sessions.timeout` (closing the connection may take two seconds more). After
    `Unavailable` the transaction may still have been committed, so callers must be able to repeat it.
    """
    try:
        async with asyncio.timeout(sessions.timeout if seconds is None else seconds):
            return await _run_until_committed(sessions, work)
    except TimeoutError as exc:
        raise Unavailable("The database does not respond in time: try again.") from exc


async def _run_until_committed(sessions: Sessions, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            async with sessions() as session:
                async with session.begin():
                    result = await work(session)
                if sessions.on_events is not None and has_written_events(session):
                    sessions.on_events()
                return result
        except (DBAPIError, PoolTimeoutError, OSError, LostRace) as exc:
            error = translate(exc)
            if isinstance(error, DatabaseFailed):
                cause = str(getattr(exc, "orig", exc))[:300]
                log.warning("The database reported an internal error.", action="database.failed", cause=cause)
            if not isinstance(error, LostRace):
                raise error from exc
            log.info("Retrying a transaction.", action="transaction.retry", attempt=attempt, cause=str(exc)[:200])
        await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS * attempt))  # noqa: S311 - jitter, not a secret
    raise Busy


def mark_events_written(session: AsyncSession) -> None:
    """Have `in_transaction` call `Sessions.on_events` once this session's transaction is committed."""
    session.info[_EVENTS_WRITTEN] = True


def has_written_events(session: AsyncSession) -> bool:
    """Whether this session's transaction has written events to the outbox."""
    return _EVENTS_WRITTEN in session.info


def translate(error: Exception) -> Exception:
    """The domain error for a database error; the error itself if it is a defect of Podium."""
    if isinstance(error, PodiumError):
        return error
    if not isinstance(error, DBAPIError):
        return Unavailable()
    domain_error = _domain_error(error)
    return domain_error() if domain_error else error


def _domain_error(error: DBAPIError) -> type[PodiumError] | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    if error.connection_invalidated and state not in STATE_ERRORS:
        return Unavailable
    cause = getattr(error.orig, "__cause__", None)
    return error_of_state(state) or CONSTRAINT_ERRORS.get(getattr(cause, "constraint_name", None) or "")


def error_of_state(state: str) -> type[PodiumError] | None:
    """The domain error for an SQLSTATE; None if it tells of a defect, or of the statement."""
    if state in STATE_ERRORS:
        return STATE_ERRORS[state]
    if state.startswith(SERVER_STATES):
        return Unavailable
    return DatabaseFailed if state.startswith(INTERNAL_STATES) else None
