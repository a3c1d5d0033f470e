"""Sizes of the chaos tests: short for every run of the tests, long for `make chaos` (CHAOS=long)."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Counts, and durations in seconds."""

    registrations: int
    worker_kills: int
    broker_restarts: int
    database_restarts: int
    rolling_restarts: int
    alarm: float
    broker_down: float
    database_down: float
    frozen: float
    server_frozen: float
    broker_frozen: float
    """Long enough for the workers to close their connections: three heartbeats, plus one second for each."""
    heartbeat: int
    database_timeout: float
    """PODIUM_DATABASE_TIMEOUT of the API while its database is frozen."""
    probed: int
    """Deployments that one janitor probes in each interval."""
    probe_interval: float
    mutants: int
    """Mutated messages."""
    patience: float
    """The longest wait until all messages are decided and all events published, after the servers run again."""


SHORT = Size(
    registrations=1_500,
    worker_kills=3,
    broker_restarts=0,
    database_restarts=0,
    rolling_restarts=2,
    alarm=2,
    broker_down=2,
    database_down=3,
    frozen=7,
    server_frozen=3,
    broker_frozen=8,
    heartbeat=1,
    database_timeout=1,
    probed=300,
    probe_interval=4,
    mutants=500,
    patience=60,
)
LONG = Size(
    registrations=20_000,
    worker_kills=10,
    broker_restarts=2,
    database_restarts=2,
    rolling_restarts=20,
    alarm=20,
    broker_down=60,
    database_down=30,
    frozen=60,
    server_frozen=60,
    broker_frozen=60,
    heartbeat=5,
    database_timeout=6,
    probed=5_000,
    probe_interval=30,
    mutants=20_000,
    patience=300,
)
SIZE = LONG if os.environ.get("CHAOS") == "long" else SHORT
# For pytest-timeout: far longer than any scenario takes, so that a hanging test ends.
LIMIT_SECONDS = 900 if SIZE is LONG else 120
