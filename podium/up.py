"""What `podium up` does: the whole system in the foreground, until told to stop."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from podium.system import ENV_FILE, Say, System, log_of, running_system
from services.settings import Settings
from workers.run import stopped_by_signals


async def up(settings: Settings, data_dir: Path, say: Say) -> None:
    """Run until SIGTERM or Ctrl-C. Raises `ServersError` as soon as a part ends by itself."""
    if await stopped_early(_stay_up(settings, data_dir, say)):
        say("Stopped. All state is kept; 'podium up' starts where it left off.")


async def stopped_early(work: Coroutine[Any, Any, None]) -> bool:
    """Whether SIGTERM or Ctrl-C came before the work was done; the work is then undone in order."""
    async with stopped_by_signals() as stop:
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        return stop.is_set()


async def _stay_up(settings: Settings, data_dir: Path, say: Say) -> None:
    async with running_system(settings, data_dir, say) as system:
        for line in _summary(system):
            say(line)
        try:
            failure = await system.failure()
        except asyncio.CancelledError:
            say("Stopping ...")
            raise
        raise failure


def _summary(system: System) -> list[str]:
    database, broker = system.settings.database_url, system.settings.amqp_url
    env_file = system.data_dir / ENV_FILE
    return [
        "",
        f"Podium is ready: {system.api_url}",
        f"  PostgreSQL   {_address(database.get_secret_value())}",
        f"  RabbitMQ     {_address(broker.get_secret_value())}",
        f"  logs         {log_of(system.data_dir, 'api').parent}",
        f"  addresses    {env_file}   (other programs join with: set -a; . {env_file})",
        "Press Ctrl-C to stop; all state is kept.",
    ]


def _address(url: str) -> str:
    """Host and port of a URL, without what is secret in it."""
    return url.rpartition("@")[2].partition("/")[0]
