"""`podium doctor` on PostgreSQL: there, new enough, migrated, writable, and its clock near ours."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from podium.cli.doctor.checks import Check, Examination, first_line, host_and_port
from podium.cli.durations import short
from services.settings import Settings
from services.storage.database import async_url
from services.storage.migrate import is_current
from services.storage.models import Base

OLDEST_VERSION = 140_000
CONNECT_SECONDS = 5
# Announcements from further ahead are dated back by the database.
SKEW_FAILED = timedelta(seconds=30)
SKEW_WARNING = timedelta(seconds=2)
EVENTS_LATE = timedelta(seconds=30)
PROBES_LATE = timedelta(minutes=2)

about = Examination("PostgreSQL")

_TABLES = sorted(Base.metadata.tables)
_DENIED = text(
    "SELECT name FROM unnest(CAST(:names AS text[])) AS name "
    "WHERE NOT (has_table_privilege(name, 'SELECT') AND has_table_privilege(name, 'INSERT'))"
)
# Fails wherever nothing can be written, and touches no row.
_WRITE = text("UPDATE agents SET updated_at = updated_at WHERE false")
_WAITING = text("SELECT count(*), min(created_at) FROM outbox WHERE published_at IS NULL")
_UNASKED = text(
    "SELECT count(*), min(probe_due_at) FROM deployments "
    "WHERE expires_at IS NULL AND acp_url IS NOT NULL AND (status <> 'Failed' OR ready_at IS NOT NULL) "
    "AND probe_due_at < statement_timestamp() - CAST(:late AS interval)"
)
_PARKED = text("SELECT count(*) FROM parked")


async def check_database(settings: Settings) -> AsyncIterator[Check]:
    """The findings, as they are made."""
    url = settings.database_url.get_secret_value()
    if not url:
        return
    try:
        # Not the services' own engine: it sets what older servers do not know.
        engine = create_async_engine(
            async_url(url),
            connect_args={"timeout": CONNECT_SECONDS, "server_settings": {"application_name": "podium-doctor"}},
        )
    except SQLAlchemyError as error:
        yield about.failed(f"PODIUM_DATABASE_URL is no address: {first_line(error)}", "correct it")
        return
    try:
        async for check in _check(engine, host_and_port(url)):
            yield check
    finally:
        await engine.dispose()


async def _check(engine: AsyncEngine, where: str) -> AsyncIterator[Check]:
    try:
        async with engine.connect() as connection:
            number = int(await connection.scalar(text("SHOW server_version_num")) or 0)
            yield _version(number, where)
            yield await _clock(connection)
        if number < OLDEST_VERSION:
            return
        if not await is_current(engine):
            yield about.failed("the schema is not the one that this version needs", "run 'podium migrate'")
            return
        yield about.ok("the schema is current")
        async with engine.connect() as connection:
            yield await _writable(connection)
        async with engine.connect() as connection:
            yield await _events(connection)
            yield await _probes(connection)
            yield await _parked(connection)
    except (SQLAlchemyError, OSError) as error:
        yield about.failed(
            f"{where} cannot be used: {first_line(getattr(error, 'orig', None) or error)}",
            "is it running, and is PODIUM_DATABASE_URL right?",
        )


def _version(number: int, where: str) -> Check:
    version = f"{number // 10_000}.{number % 10_000}"
    if number < OLDEST_VERSION:
        return about.failed(f"{where} is version {version}", "Podium needs 14 or later")
    return about.ok(f"{where} answers, version {version}")


async def _clock(connection: AsyncConnection) -> Check:
    before = datetime.now(UTC)
    theirs = await connection.scalar(text("SELECT clock_timestamp()"))
    ours = before + (datetime.now(UTC) - before) / 2
    assert isinstance(theirs, datetime)
    skew = abs(theirs - ours)
    if skew < SKEW_WARNING:
        return about.ok("its clock agrees with this machine's")
    finding = f"its clock is {short(skew)} {'ahead of' if theirs > ours else 'behind'} this machine's"
    advice = "newest wins by these clocks: run NTP on both"
    return about.failed(finding, advice) if skew > SKEW_FAILED else about.warning(finding, advice)


async def _writable(connection: AsyncConnection) -> Check:
    denied = list(await connection.scalars(_DENIED, {"names": _TABLES}))
    if denied:
        return about.failed(f"this user may not write to {', '.join(denied)}", "grant it, or migrate as the same user")
    try:
        await connection.execute(_WRITE)
        await connection.rollback()
    except SQLAlchemyError as error:
        finding = f"nothing can be written: {first_line(getattr(error, 'orig', None) or error)}"
        return about.failed(finding, "is this a standby? PODIUM_DATABASE_URL must name the primary")
    return about.ok("can be written")


async def _events(connection: AsyncConnection) -> Check:
    waiting, oldest = (await connection.execute(_WAITING)).one()
    if waiting and datetime.now(UTC) - oldest > EVENTS_LATE:
        late = short(datetime.now(UTC) - oldest)
        return about.warning(
            f"{waiting} events wait to be published, since {late}", "is 'podium worker relay' running?"
        )
    return about.ok("no event waits for long to be published")


async def _probes(connection: AsyncConnection) -> Check:
    waiting, oldest = (await connection.execute(_UNASKED, {"late": PROBES_LATE})).one()
    if waiting:
        late = short(datetime.now(UTC) - oldest)
        what = "1 deployment waits" if waiting == 1 else f"{waiting} deployments wait"
        return about.warning(f"{what} for a probe, since {late}", "is 'podium worker janitor' running?")
    return about.ok("no deployment waits for long for a probe")


async def _parked(connection: AsyncConnection) -> Check:
    parked = await connection.scalar(_PARKED)
    if parked:
        what = "1 announcement is" if parked == 1 else f"{parked} announcements are"
        return about.warning(f"{what} parked", "'podium parked list' says why, and what can be done")
    return about.ok("no announcement is parked")
