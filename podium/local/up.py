"""`podium up`: the whole system in the foreground, until SIGTERM or Ctrl-C."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from podium.local.dashboard import watch
from podium.local.log_files import log_folder
from podium.local.samples import SAMPLE_AGENT, sample_agents
from podium.local.system import ENV_FILE, Say, System, address_of, running_system
from services.settings import Settings
from workers.runner import stopped_by_signals


async def up(settings: Settings, data_dir: Path, say: Say, *, with_demo: bool = False) -> None:
    """Run until SIGTERM or Ctrl-C.

    Raises:
        ServersError: Podium did not start, or a part ended unexpectedly.
    """
    if await interrupted(_stay_up(settings, data_dir, say, with_demo=with_demo)):
        say("Stopped. All state is kept for the next 'podium up'.")


async def interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work`; returns whether SIGTERM or Ctrl-C interrupted it. Interrupted work is cancelled and cleans up."""
    async with stopped_by_signals() as stop:
        running = asyncio.create_task(work)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return stop.is_set()


async def _stay_up(settings: Settings, data_dir: Path, say: Say, *, with_demo: bool) -> None:
    async with running_system(settings, data_dir, say) as system, AsyncExitStack() as stack:
        if with_demo:
            await stack.enter_async_context(sample_agents(system))
        for line in _summary(system, with_demo=with_demo):
            say(line)
        view = asyncio.create_task(watch(system, console)) if (console := Console()).is_terminal else None
        try:
            failure = await system.failure()
        except asyncio.CancelledError:
            await _close(view)
            say("Stopping ...")
            raise
        await _close(view)
        raise failure


async def _close(view: "asyncio.Task[None] | None") -> None:
    if view is not None:
        view.cancel()
        with suppress(asyncio.CancelledError):
            await view


def _summary(system: System, *, with_demo: bool) -> list[str]:
    database, broker = system.settings.database_url, system.settings.amqp_url
    env_file = system.data_dir / ENV_FILE
    agents = [f"  sample agent {SAMPLE_AGENT}: podium agents {SAMPLE_AGENT}; podium promote {SAMPLE_AGENT}"]
    return [
        "",
        f"Podium is ready: {system.api_url}",
        f"  console      {system.api_url}/console",
        f"  PostgreSQL   {address_of(database.get_secret_value())}",
        f"  RabbitMQ     {address_of(broker.get_secret_value())}",
        f"  logs         {log_folder(system.data_dir)}",
        f"  addresses    {env_file}   (for other programs: set -a; . {env_file})",
        *(agents if with_demo else []),
        "Press Ctrl-C to stop; all state is kept.",
    ]
