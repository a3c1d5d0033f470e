"""Writing of log lines. Those of forwarded calls are many, and a system call for each would cost more than its content.

Lines of calls are collected for at most 0.2 s. Every other line is written at once, after those that were collected
before it, so the order stays. At the end of the process, the rest is written; a process that is killed loses it.
"""

import atexit
import sys
import threading
from contextlib import suppress
from typing import TextIO

# Loggers whose lines below `warning` are collected.
COLLECTED = frozenset({"api.gateway.telemetry"})
LONGEST_DELAY_SECONDS = 0.2
# Characters, after which the lines are written whatever the time.
MOST_COLLECTED = 64 * 1024


class LogLines:
    """The log of a process: makes the loggers of structlog, which write to one stream from any thread."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` is standard error unless it is given."""
        self._stream = stream if stream is not None else sys.stderr
        self._collected: list[str] = []
        self._size = 0
        self._lock = threading.RLock()
        self._some = threading.Event()
        self._writer: threading.Thread | None = None
        atexit.register(self.flush)

    def __call__(self, *names: object) -> "LineLogger":
        """The logger of a module; structlog calls this with the arguments of `get_logger`."""
        return LineLogger(self, is_collected=bool(COLLECTED.intersection(names)))

    def write(self, line: str) -> None:
        """Write a line, after all that are collected."""
        with self._lock:
            self._collected.append(line)
            self._write()

    def collect(self, line: str) -> None:
        """Write a line soon."""
        with self._lock:
            self._collected.append(line)
            self._size += len(line)
            if self._size >= MOST_COLLECTED:
                self._write()
                return
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_from_time_to_time, name="log lines", daemon=True)
                self._writer.start()
        if not self._some.is_set():
            self._some.set()

    def flush(self) -> None:
        """Write what is collected."""
        with self._lock:
            if self._collected:
                self._write()

    def _write(self) -> None:
        lines, self._collected, self._size = self._collected, [], 0
        lines.append("")
        self._stream.write("\n".join(lines))
        self._stream.flush()

    def _write_from_time_to_time(self) -> None:
        pause = threading.Event()
        while True:
            self._some.wait()
            self._some.clear()
            pause.wait(LONGEST_DELAY_SECONDS)
            # A full disk, or nobody who reads: these lines are lost, and the next ones may not be.
            with suppress(OSError, ValueError):
                self.flush()


class LineLogger:
    """A logger as structlog wraps it: one method per level, each of which gets a rendered line."""

    def __init__(self, lines: LogLines, *, is_collected: bool) -> None:
        self.warning = self.error = self.critical = self.exception = lines.write
        self.debug = self.info = lines.collect if is_collected else lines.write
