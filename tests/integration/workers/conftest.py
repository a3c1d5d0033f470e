import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Network

import pytest
import pytest_asyncio

from services.settings import Settings
from workers.runner import run_registrar, run_relay

Work = Callable[[Settings, asyncio.Event], Awaitable[None]]


@asynccontextmanager
async def working(work: Work, settings: Settings) -> AsyncIterator[None]:
    """Run a worker inside the context, and stop it gracefully afterwards."""
    stop = asyncio.Event()
    task = asyncio.ensure_future(work(settings, stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await task


@pytest_asyncio.fixture
async def registrar(settings: Settings, broker: object) -> AsyncIterator[None]:  # noqa: ARG001 - declares the queue
    """A registrar that consumes messages while the test runs."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(working(run_registrar, settings))
        yield


@pytest_asyncio.fixture
async def relay(settings: Settings, broker: object) -> AsyncIterator[None]:  # noqa: ARG001 - declares the exchange
    """A relay that publishes while the test runs."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(working(run_relay, settings))
        yield


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings that allow local receivers, with short times."""
    return settings.model_copy(
        update={
            "webhook_dial_networks": (IPv4Network("127.0.0.0/8"),),
            "webhook_timeout": timedelta(seconds=1),
            "webhook_first_retry": timedelta(milliseconds=50),
            "webhook_longest_retry": timedelta(milliseconds=200),
            "webhook_poll": timedelta(milliseconds=50),
        }
    )
