"""Logging of a process: each line is one sentence with an `action` and ids, as text or as JSON."""

import logging
import sys
from typing import Any

import structlog

from podium.log_lines import LogLines
from podium.printable import escaped
from services.settings import Settings


def configure(settings: Settings) -> None:
    """Write all log lines of this process to standard error, in the format and from the level of the settings.

    Those of forwarded calls are written up to 0.2 s later, many at a time.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # JSON escapes all characters that are not ASCII.
    rendering: list[Any] = (
        [structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [_harmless, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=LogLines(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering], foreign_pre_chain=shared
    )
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _harmless(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what is not printable: text of agents and callers adds no line and acts on no terminal.

    A traceback keeps its lines, indented, so that none of them looks like the beginning of another log line.
    """
    harmless = {name: escaped(value) if isinstance(value, str) else value for name, value in line.items()}
    if isinstance(traceback := line.get("exception"), str):
        harmless["exception"] = "\n".join(f"  {escaped(each)}" for each in traceback.splitlines())
    return harmless
