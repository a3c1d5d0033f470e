import json
import subprocess
import sys

import pytest

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
