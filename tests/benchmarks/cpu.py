"""The CPU time of processes, from /proc."""

import os
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int | None) -> float:
    """CPU time of a process and all its descendants, also of those that have ended; 0 if there is no process.

    Of PostgreSQL's postmaster with its backends, for example.
    """
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue
        fields = rest.rpartition(")")[2].split()
        parents[int(number)] = int(fields[1])
        ticks[int(number)] = sum(int(field) for field in fields[11:15])
    return sum(used for number, used in ticks.items() if _descends(number, pid, parents)) / CLOCK_TICKS


def _descends(number: int, pid: int | None, parents: dict[int, int]) -> bool:
    while number != pid and number in parents:
        number = parents[number]
    return number == pid
