"""Logging of a process: each line is one sentence with an `action` and ids, as text or as JSON."""

import logging
import re
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import structlog

from podium.log_lines import LogLines
from podium.printable import escaped
from services.settings import Settings

# Values with such a character are quoted.
_QUOTED = re.compile(r"[ \t=\r\n\"']")
# Ids and words come again, in each line of an agent.
_REPEATED_MAX_LENGTH = 64


def configure(settings: Settings) -> None:
    """Write all log lines of this process to standard error, in the format and from the level of the settings.

    Those of forwarded calls are written up to 0.2 s later, many at a time.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        stamped,
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
    return [harmless, structlog.dev.ConsoleRenderer(colors=True)] if is_terminal else [without_colours]


def stamped(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the time, as `structlog.processors.TimeStamper` does, in a fifth of its time."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    line["timestamp"] = f"{_second(seconds)}.{microseconds:06d}Z"
    return line


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def without_colours(_: object, __: str, line: structlog.typing.EventDict) -> str:
    """The line, made `harmless`, as `structlog.dev.ConsoleRenderer` renders it without colours, in a tenth of its time.

    Most of the time of the log line of a forwarded call is this.
    """
    head = f"{line.pop('timestamp')} [{line.pop('level'):<9}] {escaped(line.pop('event')):<30}"
    traceback = line.pop("exception", None)
    fields = [
        f" {name}={_shown(value) if isinstance(value, str) else repr(value)}" for name, value in sorted(line.items())
    ]
    text = f"{head}{''.join(fields)}".rstrip(" ")
    return text if traceback is None else f"{text}\n{_indented(traceback)}"


def _shown(value: str) -> str:
    return _shown_again(value) if len(value) <= _REPEATED_MAX_LENGTH else _quoted(value)


def _quoted(value: str) -> str:
    text = escaped(value)
    return text if _QUOTED.search(text) is None else repr(text)


_shown_again = lru_cache(maxsize=4096)(_quoted)


def harmless(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what is not printable: text of agents and callers adds no line and acts on no terminal.

    A traceback keeps its lines, indented, so that none of them looks like the beginning of another log line.
    """
    harmless = {name: escaped(value) if isinstance(value, str) else value for name, value in line.items()}
    if isinstance(traceback := line.get("exception"), str):
        harmless["exception"] = _indented(traceback)
    return harmless


def _indented(traceback: str) -> str:
    return "\n".join(f"  {escaped(each)}" for each in traceback.splitlines())
