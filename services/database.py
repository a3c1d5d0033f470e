"""The way to PostgreSQL: one engine per process, and the one helper that owns transactions."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import structlog
from pydantic_core import from_json
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from services.errors import CONSTRAINT_ERRORS, Busy, LostRace, PodiumError, Unavailable
from services.settings import Settings

T = TypeVar("T")
Sessions = async_sessionmaker[AsyncSession]

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 5
MAX_ATTEMPTS = 10
BACKOFF_SECONDS = 0.01
# Beyond the server's own statement timeout, for a server that does not answer at all.
COMMAND_TIMEOUT_MARGIN_SECONDS = 5

DEADLOCK = "40P01"
SERIALIZATION_FAILURE = "40001"
LOCK_NOT_AVAILABLE = "55P03"
# The server's state, not the statement's fault: connection exception, read-only (a standby, before or after a
# fail-over), session ended while idle, no authorization, no such database, insufficient resources, operator.
SERVER_STATES = ("08", "25006", "25P03", "28", "3D", "53", "57")

log = structlog.get_logger(__name__)


def async_url(database_url: str) -> URL:
    """The URL with the driver that Podium uses, whichever the setting names."""
    return make_url(database_url).set(drivername="postgresql+asyncpg")


def make_engine(
    settings: Settings,
    *,
    application_name: str,
    pool_size: int | None = None,
    idle_session_timeout: timedelta = timedelta(0),
) -> AsyncEngine:
    """An engine that connects on first use; dispose of it when the process ends. No idle session timeout if zero."""
    milliseconds = {
        "idle_session_timeout": idle_session_timeout,
        "lock_timeout": settings.lock_timeout,
        "statement_timeout": settings.statement_timeout,
        "idle_in_transaction_session_timeout": settings.statement_timeout,
    }
    return create_async_engine(
        async_url(settings.database_url.get_secret_value()),
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        json_deserializer=from_json,
        connect_args={
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": settings.statement_timeout.total_seconds() + COMMAND_TIMEOUT_MARGIN_SECONDS,
            "server_settings": {
                "application_name": application_name,
                # A plan made while the tables were empty stays a bad plan: batches fell to a quarter of their speed.
                "plan_cache_mode": "force_custom_plan",
                **{name: str(int(limit.total_seconds() * 1000)) for name, limit in milliseconds.items()},
            },
        },
    )


def make_sessions(engine: AsyncEngine) -> Sessions:
    """The factory that entry points hand to `in_transaction`."""
    return async_sessionmaker(engine, expire_on_commit=False)


async def in_transaction(sessions: Sessions, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """What `work` returns, once its transaction is committed; others see nothing of it before.

    Runs `work` again after a deadlock, a serialization failure or a lost race, so it must only touch its session.
    Raises `Busy` after too long a wait for a lock, `Unavailable` while the database is away; after the latter
    the transaction may have been committed all the same, so callers must be able to repeat themselves.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            async with sessions() as session, session.begin():
                return await work(session)
        except (DBAPIError, PoolTimeoutError, OSError, LostRace) as exc:
            error = translate(exc)
            if not isinstance(error, LostRace):
                raise error from exc
            log.info("A transaction runs again.", action="transaction.retry", attempt=attempt, cause=str(exc)[:200])
        await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS * attempt))  # noqa: S311 - jitter, not a secret
    raise Busy


def translate(error: Exception) -> Exception:
    """The domain error that a database error stands for, or the error itself where it is a defect."""
    if isinstance(error, PodiumError):
        return error
    if not isinstance(error, DBAPIError):
        return Unavailable()
    state = getattr(error.orig, "sqlstate", None)
    if state in {DEADLOCK, SERIALIZATION_FAILURE}:
        return LostRace()
    if state == LOCK_NOT_AVAILABLE:
        return Busy()
    if error.connection_invalidated or (isinstance(state, str) and state.startswith(SERVER_STATES)):
        return Unavailable()
    cause = getattr(error.orig, "__cause__", None)
    domain_error = CONSTRAINT_ERRORS.get(getattr(cause, "constraint_name", None) or "")
    return domain_error() if domain_error else error
