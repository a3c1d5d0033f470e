import json
import subprocess
import sys
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from podium.logs import harmless, without_colours
from tests.support.hostile_text import FORGED, HOSTILE, harmful

# Logs through structlog and through the standard library, with hostile text in each place that takes any text.
PROGRAM = """
import logging, structlog
from podium import logs
from services.settings import Settings
from tests.support.hostile_text import HOSTILE
logs.configure(Settings(log_level="info", log_format={format!r}))
log = structlog.get_logger("test")
without_blanks = HOSTILE.replace(" ", "_")
log.info("A sentence.", action="a", text=HOSTILE, word=without_blanks, listed=[HOSTILE], named={{HOSTILE: 1}})
log.info(HOSTILE, action="b")
try:
    raise ValueError(HOSTILE)
except ValueError:
    log.exception("It failed.", action="c")
    logging.getLogger("library").exception("%s", HOSTILE)
logging.getLogger("library").warning(HOSTILE)
"""


def logged(log_format: str) -> str:
    """What a process writes to its log."""
    program = PROGRAM.format(format=log_format)
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8").stderr


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_hostile_text_has_no_effect_in_logs(log_format: str) -> None:
    """G91: it begins no line, and contains no character that acts on a terminal."""
    written = logged(log_format)
    assert FORGED in written
    assert not harmful(written)
    assert not [line for line in written.splitlines() if line.startswith(FORGED)]


def test_each_line_of_a_json_log_is_a_document() -> None:
    """G91: the text in it is whole."""
    lines = [json.loads(line) for line in logged("json").splitlines()]
    assert [line.get("action") for line in lines] == ["a", "b", "c", None, None]
    assert lines[0]["text"] == HOSTILE
    assert lines[1]["event"] == HOSTILE
    assert HOSTILE in lines[2]["exception"]


def test_a_traceback_on_the_console_is_indented() -> None:
    """G91: each line of it differs from the beginning of a log line, which is its time."""
    assert {line[:2] for line in logged("console").splitlines()} == {"  ", "20"}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=2))
LINES = st.fixed_dictionaries(
    {"timestamp": st.just("2026-11-26T12:00:00.000000Z"), "level": st.sampled_from(["info", "critical"])},
    optional={"exception": st.text(min_size=1), "action": VALUES, "ms": VALUES, "agent_id": VALUES, "x": VALUES},
)


@given(
    LINES,
    st.one_of(st.text(), st.sampled_from(["A call was forwarded.", "A", "A sentence of more than 30 characters."])),
)
def test_a_line_without_colours_is_that_of_structlog(fields: dict[str, Any], event: str) -> None:
    """Character by character; only the time that it takes is another one."""
    line = {**fields, "event": event}
    of_structlog = structlog.dev.ConsoleRenderer(colors=False)
    assert without_colours(None, "", dict(line)) == of_structlog(None, "", harmless(None, "", dict(line)))
