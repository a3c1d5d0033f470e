"""When a janitor is in panic: most of what it probes fails at the same time."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from services.domain.health_policy import ProbeOutcome, ProbeTarget
from services.settings import Settings
from tests.support.factories import a_deployment
from tests.unit.test_health_policy import target_of
from workers.janitor.monitor import UNKNOWN_LOGGED_EVERY_SECONDS, ProbeMonitor
from workers.metrics import WorkerMetrics

ANSWERED, FAILED = ProbeOutcome("answered"), ProbeOutcome("failed", "no answer within 5 s")
UNKNOWN = ProbeOutcome("unknown", "This address may not be dialled.")
JANITOR = UUID("00000000-0000-4000-8000-0000000000aa")


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        """The seconds that the test has set."""
        return self.now


def a_monitor(clock: Clock | None = None, **settings: Any) -> ProbeMonitor:
    """A monitor with these settings."""
    return ProbeMonitor(Settings(**settings), WorkerMetrics(), clock=clock or Clock())


def a_target(number: int, *, agent: int | None = None, host: int | None = None, **fields: Any) -> ProbeTarget:
    """The deployment `v<number>`, by default of an agent and at an address of its own."""
    agent_id = UUID(int=number if agent is None else agent)
    target = target_of(a_deployment(f"v{number}", **fields))
    return replace(target, agent_id=agent_id, acp_url=f"http://10.0.0.{number if host is None else host}:8000")


def fails(monitor: ProbeMonitor, *numbers: int, **fields: Any) -> list[bool]:
    """Whether each of these failed probes may change its deployment."""
    return [monitor.record(a_target(number, **fields), FAILED) for number in numbers]


def answers(monitor: ProbeMonitor, *numbers: int) -> None:
    """These probes are answered."""
    assert all(monitor.record(a_target(number), ANSWERED) for number in numbers)


def test_no_failure_counts_while_more_than_half_of_the_probes_fail() -> None:
    """The panic begins and ends with a line in the log; an answer counts all the time."""
    monitor = a_monitor()
    answers(monitor, *range(10))
    with capture_logs() as logs:
        assert fails(monitor, *range(5)) == [True] * 5
        assert fails(monitor, 5, 6, 0) == [False] * 3
        assert monitor.report(JANITOR, "host:1").panic_since is not None
        assert monitor.panic_changed.is_set()
        answers(monitor, 0)
        assert fails(monitor, 7) == [False]
        answers(monitor, 1, 2)
    assert monitor.panic_since is None
    assert fails(monitor, 3) == [True]
    assert [(each["action"], each["failing"], each["probed"]) for each in logs] == [
        ("janitor.panic", 6, 10),
        ("janitor.panic_over", 5, 10),
    ]


@pytest.mark.parametrize("same", [{"agent": 1}, {"host": 1}], ids=["one agent", "one address"])
def test_one_agent_or_one_address_is_no_reason_for_panic(same: dict[str, int]) -> None:
    """However many deployments it has, they may have one cause."""
    monitor = a_monitor()
    assert all(fails(monitor, *range(100), **same))


def test_a_small_installation_gets_its_verdicts() -> None:
    """All four agents of four have died: a janitor cannot tell this from a fault of its own, and believes it."""
    monitor = a_monitor()
    assert all(fails(monitor, *range(4)))
    assert fails(monitor, 4) == [False]


def test_the_share_can_be_changed_and_1_switches_panic_off() -> None:
    """Of 10 deployments, 3 fail."""
    for share, counts in ((0.2, False), (0.3, True), (1, True)):
        monitor = a_monitor(panic_share=share, panic_agents=1)
        answers(monitor, *range(3, 10))
        assert fails(monitor, 0, 1, 2)[-1] is counts
    monitor = a_monitor(panic_share=1)
    assert all(fails(monitor, *range(50)))


@pytest.mark.parametrize("status", ["Failed", "Pending"])
def test_only_ready_deployments_count(status: Any) -> None:
    """Those that have been Failed for long fail always; those that start do not answer yet."""
    monitor = a_monitor()
    assert all(fails(monitor, *range(50), status=status))
    answers(monitor, 50)
    assert monitor.report(JANITOR, "host:1").probed == 1


def test_a_verdict_takes_its_deployment_out_of_the_share() -> None:
    """It was counted while it was Ready."""
    monitor = a_monitor()
    fails(monitor, *range(4))
    fails(monitor, *range(4), status="Failed")
    assert monitor.report(JANITOR, "host:1").failing == 0


def test_old_probes_are_forgotten() -> None:
    """The window is at least as long as the interval of the probes."""
    clock = Clock()
    monitor = a_monitor(clock, panic_window=timedelta(seconds=10), probe_interval=timedelta(seconds=60))
    fails(monitor, *range(5))
    clock.now = 59.0
    assert monitor.report(JANITOR, "host:1").panic_since is not None
    clock.now = 61.0
    report = monitor.report(JANITOR, "host:1")
    assert (report.panic_since, report.probed, report.failing) == (None, 0, 0)


def test_a_probe_that_could_not_be_made_counts_for_nothing() -> None:
    """It is counted apart, with its reason, and is no reason for panic; the log says so once a minute."""
    clock = Clock()
    monitor = a_monitor(clock)
    with capture_logs() as logs:
        for second in range(int(UNKNOWN_LOGGED_EVERY_SECONDS) + 1):
            clock.now = float(second)
            assert not monitor.record(a_target(second % 10), UNKNOWN)
    assert monitor.panic_since is None
    report = monitor.report(JANITOR, "host:1")
    assert (report.probed, report.failing, report.unknown, report.unknown_reason) == (0, 0, 10, UNKNOWN.reason)
    assert [each["action"] for each in logs] == ["janitor.probe_unknown"] * 2
