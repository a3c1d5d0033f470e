"""Logging of a process: each line is one sentence with an `action` and ids, as text or as JSON."""

import logging
import re
import sys
from typing import Any

import structlog

from podium.log_lines import LogLines
from podium.printable import escaped
from services.settings import Settings

# Values with such a character are quoted.
_QUOTED = re.compile(r"[ \t=\r\n\"']")


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
    rendering = _rendering(settings.log_format, is_terminal=sys.stderr.isatty())
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


def _rendering(log_format: str, *, is_terminal: bool) -> list[Any]:
    if log_format == "json":
        # It escapes all characters that are not ASCII.
        return [structlog.processors.JSONRenderer()]
    # Colours are for people at a terminal. Rendering them takes a tenth of the time of a forwarded call.
    return [harmless, structlog.dev.ConsoleRenderer(colors=True) if is_terminal else without_colours]


def without_colours(_: object, __: str, line: structlog.typing.EventDict) -> str:
    """The line as `structlog.dev.ConsoleRenderer` renders it without colours, in a fifth of its time."""
    head = f"{line.pop('timestamp')} [{line.pop('level'):<9}] {line.pop('event'):<30}"
    traceback = line.pop("exception", None)
    fields = "".join(f" {name}={_shown(value)}" for name, value in sorted(line.items()))
    text = f"{head}{fields}".rstrip(" ")
    return text if traceback is None else f"{text}\n{traceback}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) and _QUOTED.search(value) is None else repr(value)


def harmless(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what is not printable: text of agents and callers adds no line and acts on no terminal.

    A traceback keeps its lines, indented, so that none of them looks like the beginning of another log line.
    """
    harmless = {name: escaped(value) if isinstance(value, str) else value for name, value in line.items()}
    if isinstance(traceback := line.get("exception"), str):
        harmless["exception"] = "\n".join(f"  {escaped(each)}" for each in traceback.splitlines())
    return harmless
