"""Whether a process may start with what the variables say about traces."""

import threading

import pytest

from services.settings import Settings
from services.tracing.start import refusal


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "abc", "OTEL_SPAN_LINK_COUNT_LIMIT must be a non-negative integer but got abc"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2", "max_export_batch_size must be less than or equal to max_queue_size"),
    ],
)
def test_a_variable_that_the_sdk_refuses_is_a_readable_refusal(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is wrong and what to do, only with traces on, and leaves no thread behind."""
    threads = threading.active_count()
    assert refusal(Settings(traces="otlp")) is None
    monkeypatch.setenv(variable, value)
    why = refusal(Settings(traces="otlp"))
    assert why is not None
    assert f"OTEL_* variables: {named}. Correct them, or set PODIUM_TRACES=off." in why
    assert refusal(Settings(traces="off")) is None
    assert threading.active_count() == threads
