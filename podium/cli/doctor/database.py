"""Checks of PostgreSQL: its version, clock, schema and privileges, and work that waits too long."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from podium.cli.doctor.checks import Check, Part, first_line, host_and_port
from podium.cli.durations import format_duration
from services.health.janitors import living_janitors
from services.settings import Settings
from services.storage.database import async_url
from services.storage.migrate import is_current
from services.storage.models import Base
from services.tls import certificate_problem, database_options
from services.webhooks.positions import webhook_states

MIN_VERSION = 140_000
CONNECT_SECONDS = 5
# Announcements that are dated further in the future get the time of the database.
SKEW_FAILED = timedelta(seconds=30)
SKEW_WARNING = timedelta(seconds=2)
EVENTS_LATE = timedelta(seconds=30)
PROBES_LATE = timedelta(minutes=2)
WEBHOOKS_LATE = timedelta(minutes=2)

part = Part("PostgreSQL")

_TABLES = sorted(Base.metadata.tables)
_DENIED = text(
    "SELECT name FROM unnest(CAST(:names AS text[])) AS name "
    "WHERE NOT (has_table_privilege(name, 'SELECT') AND has_table_privilege(name, 'INSERT'))"
)
# Fails if the database is read-only; changes no row.
_WRITE = text("UPDATE agents SET updated_at = updated_at WHERE false")
_UNPUBLISHED = text("SELECT count(*), min(created_at) FROM outbox WHERE published_at IS NULL")
_NOT_PROBED = text(
    "SELECT count(*), min(p.due_at) FROM probes AS p JOIN deployments AS d ON d.id = p.deployment_id "
    "WHERE d.expires_at IS NULL AND d.acp_url IS NOT NULL AND (d.status <> 'Failed' OR d.ready_at IS NOT NULL) "
    "AND p.due_at < statement_timestamp() - CAST(:late AS interval)"
)
_PARKED = text("SELECT count(*) FROM parked")


async def check_database(settings: Settings) -> AsyncIterator[Check]:
    """Run the checks, and yield each result at once."""
    url = settings.database_url.get_secret_value()
    if not url:
        return
    try:
        # The services' engine sets parameters that servers older than 14 do not know.
        engine = create_async_engine(
            async_url(url),
            connect_args={
                **database_options(settings),
                "timeout": CONNECT_SECONDS,
                "server_settings": {"application_name": "podium-doctor"},
            },
        )
    except SQLAlchemyError as error:
        yield part.failed(f"PODIUM_DATABASE_URL is not a valid address: {first_line(error)}", "correct it")
        return
    try:
        async for check in _check(engine, host_and_port(url)):
            yield check
    finally:
        await engine.dispose()


async def _check(engine: AsyncEngine, address: str) -> AsyncIterator[Check]:
    try:
        async with engine.connect() as connection:
            number = int(await connection.scalar(text("SHOW server_version_num")) or 0)
            yield _version(number, address)
            yield await _clock(connection)
        if number < MIN_VERSION:
            return
        if not await is_current(engine):
            yield part.failed("the schema is not that of this version", "run 'podium migrate'")
            return
        yield part.ok("the schema is current")
        async with engine.connect() as connection:
            yield await _writable(connection)
        async with engine.connect() as connection:
            yield await _events(connection)
            yield await _probes(connection)
            async for check in _janitors(connection):
                yield check
            yield await _parked(connection)
            async for check in _webhooks(connection):
                yield check
    except (SQLAlchemyError, OSError) as error:
        if (problem := certificate_problem(error)) is not None:
            advice = "check PODIUM_DATABASE_CA_FILE and the host in PODIUM_DATABASE_URL"
            yield part.failed(f"{address}: {problem}", advice)
            return
        yield part.failed(
            f"{address} cannot be used: {first_line(getattr(error, 'orig', None) or error)}",
            "is it running, and is PODIUM_DATABASE_URL right?",
        )


def _version(number: int, address: str) -> Check:
    version = f"{number // 10_000}.{number % 10_000}"
    if number < MIN_VERSION:
        return part.failed(f"{address} is version {version}", "Podium needs 14 or later")
    return part.ok(f"{address} answers, version {version}")


async def _clock(connection: AsyncConnection) -> Check:
    before = datetime.now(UTC)
    server_time = await connection.scalar(text("SELECT clock_timestamp()"))
    own_time = before + (datetime.now(UTC) - before) / 2
    assert isinstance(server_time, datetime)
    skew = abs(server_time - own_time)
    if skew < SKEW_WARNING:
        return part.ok("its clock agrees with the clock of this machine")
    direction = "ahead of" if server_time > own_time else "behind"
    finding = f"its clock is {format_duration(skew)} {direction} the clock of this machine"
    advice = "announcements are ordered by these clocks: run NTP on both machines"
    return part.failed(finding, advice) if skew > SKEW_FAILED else part.warning(finding, advice)


async def _writable(connection: AsyncConnection) -> Check:
    denied = list(await connection.scalars(_DENIED, {"names": _TABLES}))
    if denied:
        return part.failed(
            f"this user may not write to {', '.join(denied)}", "grant it, or run 'podium migrate' with this user"
        )
    try:
        await connection.execute(_WRITE)
        await connection.rollback()
    except SQLAlchemyError as error:
        finding = f"nothing can be written: {first_line(getattr(error, 'orig', None) or error)}"
        return part.failed(finding, "PODIUM_DATABASE_URL must name the primary, not a standby")
    return part.ok("the tables are writable")


async def _events(connection: AsyncConnection) -> Check:
    waiting, oldest = (await connection.execute(_UNPUBLISHED)).one()
    if waiting and datetime.now(UTC) - oldest > EVENTS_LATE:
        late = format_duration(datetime.now(UTC) - oldest)
        what = "1 event is" if waiting == 1 else f"{waiting} events are"
        return part.warning(f"{what} not published yet, the oldest for {late}", "is 'podium worker relay' running?")
    return part.ok("events are published in time")


async def _probes(connection: AsyncConnection) -> Check:
    waiting, oldest = (await connection.execute(_NOT_PROBED, {"late": PROBES_LATE})).one()
    if waiting:
        late = format_duration(datetime.now(UTC) - oldest)
        what = "1 deployment is" if waiting == 1 else f"{waiting} deployments are"
        return part.warning(f"{what} overdue for a probe, the oldest for {late}", "is 'podium worker janitor' running?")
    return part.ok("deployments are probed in time")


async def _janitors(connection: AsyncConnection) -> AsyncIterator[Check]:
    for janitor in await living_janitors(connection):
        if janitor.in_panic:
            yield part.failed(janitor.in_panic, "can that machine reach the agents' pods, as the API does?")
        if janitor.unknown:
            what = "1 deployment" if janitor.unknown == 1 else f"{janitor.unknown} deployments"
            yield part.warning(
                f"janitor {janitor.name} cannot probe {what}: {janitor.unknown_reason}",
                "do its PODIUM_DIAL_* settings, its resolver and its network reach the agents' pods?",
            )


async def _webhooks(connection: AsyncConnection) -> AsyncIterator[Check]:
    states = await webhook_states(connection)
    unread = [each.unread_for for each in states if each.unread_for and each.unread_for > WEBHOOKS_LATE]
    in_time = not unread
    if unread:
        late = format_duration(max(unread))
        yield part.warning(f"events wait for webhooks for {late}", "is 'podium worker webhooks' running?")
    for each in states:
        name = f"webhook {each.id} of {each.agent_name or 'all agents'}"
        missed = f" and has missed {each.missed} events" if each.missed else ""
        if each.status == "disabled":
            in_time = False
            yield part.warning(
                f"{name} is disabled ({each.status_reason}){missed}",
                f"'podium webhooks resume {each.id}' starts it again",
            )
        elif each.waiting_for and each.waiting_for > WEBHOOKS_LATE:
            in_time, late = False, format_duration(each.waiting_for)
            yield part.warning(f"{name} is {late} behind{missed}", f"'podium webhooks deliveries {each.id}' shows why")
    if in_time:
        yield part.ok("webhooks are delivered in time")


async def _parked(connection: AsyncConnection) -> Check:
    parked = await connection.scalar(_PARKED)
    if parked:
        what = "1 announcement is" if parked == 1 else f"{parked} announcements are"
        return part.warning(f"{what} parked", "'podium parked list' shows the reasons")
    return part.ok("no announcement is parked")
