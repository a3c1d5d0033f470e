"""Lines of forwarded calls are written together and soon; all others at once and in order."""

import io
import subprocess
import sys
import time
from typing import Any

import pytest

from podium.log_lines import LONGEST_DELAY_SECONDS, LogLines

CALLS = "api.gateway.telemetry"


class Stream(io.StringIO):
    """Counts writes."""

    writes = 0

    def write(self, text: str) -> int:  # noqa: D102 - as in the base class
        self.writes += 1
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    """What a process writes its log to."""
    return Stream()


def test_lines_of_calls_are_written_together_within_their_delay(stream: Stream) -> None:
    """One write for many."""
    calls = LogLines(stream)(CALLS)
    for number in range(100):
        calls.info(f"call {number}")
    deadline = time.monotonic() + 20 * LONGEST_DELAY_SECONDS
    while stream.getvalue().count("\n") < 100:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert stream.writes <= 3


@pytest.mark.parametrize("level", ["warning", "error", "critical", "exception"])
def test_a_failure_is_written_at_once_after_what_came_before(stream: Stream, level: str) -> None:
    """Also one of a forwarded call."""
    calls: Any = LogLines(stream)(CALLS)
    calls.info("first")
    getattr(calls, level)("failed")
    assert stream.getvalue() == "first\nfailed\n"


def test_lines_of_other_loggers_are_written_at_once(stream: Stream) -> None:
    """In the order of all."""
    lines = LogLines(stream)
    lines(CALLS).info("call")
    lines().info("other")
    assert stream.getvalue() == "call\nother\n"


def test_much_is_written_at_once(stream: Stream) -> None:
    """Memory is bounded."""
    calls = LogLines(stream)(CALLS)
    for _ in range(10):
        calls.info("x" * 10_000)
    assert len(stream.getvalue()) >= 60_000


def test_the_end_of_a_process_writes_the_rest() -> None:
    """Nothing is lost at exit."""
    program = f"from podium.log_lines import LogLines; LogLines()('{CALLS}').info('last')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "last\n"
