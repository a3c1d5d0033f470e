"""The live table of `podium up` on a terminal: the parts, their addresses and processes, and some counts."""

import asyncio
import time
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from podium.local.system import System, address_of
from services.storage.database import make_engine

REFRESH_SECONDS = 1.0

_COUNTS = text("""
SELECT
    (SELECT count(*) FROM agents WHERE deleted_at IS NULL) AS agents,
    (SELECT count(*) FROM outbox WHERE published_at IS NULL) AS waiting,
    (SELECT count(*) FROM parked) AS parked
""")


async def watch(system: System, console: Console) -> None:
    """Show the table, refreshed every REFRESH_SECONDS, until cancelled."""
    started = time.monotonic()
    engine = make_engine(system.settings, application_name="podium-up", pool_size=1)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(_render(system, time.monotonic() - started, await _counts(engine)), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)
    finally:
        await engine.dispose()


async def _counts(engine: AsyncEngine) -> str:
    try:
        async with engine.connect() as connection:
            row = (await connection.execute(_COUNTS)).one()
    except (SQLAlchemyError, OSError):
        return "the database is not reachable"
    return f"agents {row.agents} · events waiting {row.waiting} · parked messages {row.parked}"


def _render(system: System, seconds: float, counts: str) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for heading in ("part", "where", "process"):
        table.add_column(heading, style="cyan" if heading == "part" else "")
    for name, where, pid in _parts(system):
        table.add_row(name, where, pid)
    minutes, rest = divmod(int(seconds), 60)
    line = Text(f"up {minutes}:{rest:02d} · {counts} · Ctrl-C stops, all state is kept", style="dim")
    return Group(table, line)


def _parts(system: System) -> Iterator[tuple[str, str, str]]:
    servers = {"PostgreSQL": system.servers.postgres, "RabbitMQ": system.servers.rabbitmq}
    urls = {"PostgreSQL": system.servers.database_url, "RabbitMQ": system.servers.amqp_url}
    for name, server in servers.items():
        yield name, address_of(urls[name]), "external" if server is None else str(server.pid or "-")
    for name, part in system.parts.items():
        yield name, system.api_url if name == "api" else "", str(part.pid)
