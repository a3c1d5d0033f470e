"""Settings with which no process starts."""

import subprocess
import sys

import pytest

from services.settings import Settings, variable_of
from tests.support.processes import ROOT

TIMEOUTS = [
    "PODIUM_DATABASE_TIMEOUT",
    "PODIUM_LOCK_TIMEOUT",
    "PODIUM_STATEMENT_TIMEOUT",
    "PODIUM_PUBLISH_TIMEOUT",
    "PODIUM_RELAY_POLL",
    "PODIUM_JANITOR_POLL",
    "PODIUM_PROBE_TIMEOUT",
    "PODIUM_WEBHOOK_TIMEOUT",
    "PODIUM_PENDING_DEADLINE",
    "PODIUM_ROUTE_TIMEOUT",
    "PODIUM_CONNECT_TIMEOUT",
    "PODIUM_FIRST_BYTE_TIMEOUT",
    "PODIUM_IDLE_TIMEOUT",
    "PODIUM_CARD_TIMEOUT",
    "PODIUM_SSE_HEARTBEAT",
    "PODIUM_HEAD_TIMEOUT",
    "PODIUM_BODY_IDLE_TIMEOUT",
    "PODIUM_BODY_TIMEOUT",
    "PODIUM_WRITE_TIMEOUT",
    "PODIUM_KEEP_ALIVE_TIMEOUT",
]


@pytest.mark.parametrize("variable", TIMEOUTS)
@pytest.mark.parametrize("value", ["0", "PT0S", "0.0004", "-1", "nan", "inf", "1e12", "P25D", "soon"])
def test_a_time_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """Zero would mean no limit, or no pause at all; the error names the variable."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable.removeprefix("PODIUM_").lower()):
        Settings()


def test_every_timeout_has_limits() -> None:
    """No setting that ends in TIMEOUT is missing above."""
    assert {variable_of(name) for name in Settings.model_fields if name.endswith("_timeout")} <= {
        *TIMEOUTS,
        # The longest orderly stop may be none.
        "PODIUM_DRAIN_TIMEOUT",
    }


def test_a_relay_that_would_lose_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database ends a relay's session after 5 idle seconds: the relay must ask it more often."""
    monkeypatch.setenv("PODIUM_RELAY_POLL", "5")
    with pytest.raises(ValueError, match="the database ends a relay's session"):
        Settings()


def test_a_process_says_what_is_wrong() -> None:
    """One line with the variable and what it may be; exit code 2."""
    for variable, sentence in (
        ("PODIUM_LOCK_TIMEOUT", "it must be from 0.001 to 2073600 seconds"),
        ("PODIUM_RELAY_POLL", "it must be from 0.001 to 4 seconds: the database ends a relay's session"),
    ):
        arguments = [sys.executable, "-m", "podium", "api"]
        value = "0" if variable == "PODIUM_LOCK_TIMEOUT" else "5"
        done = subprocess.run(
            arguments, env={variable: value, "PATH": ""}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert f"{variable} is not valid: {sentence}" in done.stderr
