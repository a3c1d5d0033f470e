"""`make bench-check`: has Podium become slower beside its peers and the limits?

    python -m tests.benchmarks.check [--results RESULTS.json]

Measures a short form of `make bench`, or reads results, and compares their ratios with those in docs/benchmarks.json.
Rates depend on the machine, ratios hardly do, if it is quiet: close what else runs. Each ratio is of medians of rounds
in which the programs took turns. Exit code 1 if a ratio lost more than a fifth.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.table import Table

from tests.benchmarks.results import Results
from tests.benchmarks.rows import SHORT, console
from tests.benchmarks.run import measure
from tests.support.processes import ROOT

STORED = ROOT / "docs" / "benchmarks.json"
LARGEST_LOSS = 0.2


class Verdict(StrEnum):
    """What a comparison says about one ratio."""

    KEPT = "kept"
    LOST = "LOST"
    NEW = "new: it is not in the stored results"
    MISSING = "missing: it was not measured"


@dataclass(frozen=True, slots=True)
class Compared:
    """A ratio in the stored results and now; None where it is missing."""

    name: str
    stored: float | None
    now: float | None

    @property
    def verdict(self) -> Verdict:
        """A loss is a share of the stored ratio; a gain is none."""
        if self.stored is None:
            return Verdict.NEW
        if self.now is None:
            return Verdict.MISSING
        return Verdict.LOST if self.now < self.stored * (1 - LARGEST_LOSS) else Verdict.KEPT


def compare(stored: Mapping[str, float], now: Mapping[str, float]) -> list[Compared]:
    """All ratios of both, in the stored order, then the new ones."""
    names = [*stored, *(name for name in now if name not in stored)]
    return [Compared(name, stored.get(name), now.get(name)) for name in names]


def table(compared: Sequence[Compared]) -> Table:
    """The comparison for a terminal."""
    shown = Table(title="Ratios beside docs/benchmarks.json")
    for heading in ("ratio", "stored", "now", "change", ""):
        shown.add_column(heading, justify="left" if heading in {"ratio", ""} else "right")
    for each in compared:
        change = f"{each.now / each.stored - 1:+.0%}" if each.now and each.stored else ""
        style = "bold red" if each.verdict is Verdict.LOST else None
        shown.add_row(each.name, _number(each.stored), _number(each.now), change, each.verdict, style=style)
    return shown


def _number(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x"


def main(results: Path | None, stored: Path = STORED) -> int:
    """Compare, print the table; returns the exit code."""
    if results is None:
        console.print("The machine should be quiet meanwhile: other programs change the ratios.")
    found = Results.read(results) if results else measure(1, SHORT, None, lambda _, title: console.print(title))
    compared = compare(Results.read(stored).ratios, found.ratios)
    console.print(table(compared))
    lost = [each.name for each in compared if each.verdict is Verdict.LOST]
    if lost:
        console.print(f"{len(lost)} of {len(compared)} ratios lost more than {LARGEST_LOSS:.0%}: {', '.join(lost)}.")
        console.print("Measure again on a quiet machine before you believe it.")
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare ratios with those of docs/benchmarks.json.")
    parser.add_argument("--results", type=Path, default=None, help="a result of `make bench RESULTS=name`: name.json")
    try:
        sys.exit(main(parser.parse_args().results))
    except KeyboardInterrupt:
        sys.exit("Stopped: nothing was compared.")
