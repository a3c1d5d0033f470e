"""Switching traces on: `open_tracer` for a process, and the reason why it cannot be done."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.settings import Settings

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer

EXTRA = "podium[otel]"
# What a stop waits for the collector at most, also as a share of the drain timeout. What is not sent by then is lost.
CLOSE_SECONDS, CLOSE_SHARE = 2.0, 0.2


def refusal(settings: Settings) -> str | None:
    """Why a process cannot start with these settings, and what to do; None if it can, or if traces are off."""
    if not _is_on(settings):
        return None
    try:
        from services.tracing.tracer import refused_variable  # noqa: PLC0415 - only with traces on
    except ImportError as missing:
        return (
            f"PODIUM_TRACES is set to {settings.traces}, and {missing.name} is not installed: run "
            f"pip install '{EXTRA}', or set PODIUM_TRACES=off."
        )
    if (why := refused_variable()) is not None:
        reason = why.rstrip(".")
        return f"Traces cannot be sent with these OTEL_* variables: {reason}. Correct them, or set PODIUM_TRACES=off."
    return None


@asynccontextmanager
async def open_tracer(settings: Settings, service: str) -> "AsyncGenerator[Tracer | None, None]":
    """The tracer of a process; None if traces are off. On exit it sends what it has, for a bounded time.

    `service` is the name of the service unless OTEL_SERVICE_NAME is set.
    """
    if not _is_on(settings):
        yield None
        return
    from services.tracing.tracer import Tracer  # noqa: PLC0415 - only with traces on

    tracer = Tracer(service)
    try:
        yield tracer
    finally:
        await tracer.close(min(CLOSE_SECONDS, settings.drain_timeout.total_seconds() * CLOSE_SHARE))


def _is_on(settings: Settings) -> bool:
    return settings.traces != "off" and os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
