"""The results of benchmarks: how they are stored, and their medians and ratios."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from tests.benchmarks.rows import LIMITS, RATIOS, Figures

# The load of the last minute. Other programs make every figure worse, and not all by the same factor.
QUIET = 0.5


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one run by name, and every turn that the rates over HTTP come from."""

    figures: Figures
    rounds: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured, and on which machine."""

    machine: Mapping[str, Any]
    runs: Sequence[Run]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `OSError` and `ValueError`."""
        stored = json.loads(path.read_text())
        return cls(stored["machine"], [Run(run["figures"], run["rounds"]) for run in stored["runs"]])

    def as_json(self) -> str:
        """All numbers."""
        runs = [{"figures": run.figures, "rounds": run.rounds} for run in self.runs]
        content = {"machine": self.machine, "ratios": self.ratios, "runs": runs}
        return as_json(content)

    @property
    def figures(self) -> Figures:
        """The median of the runs, of what each of them measured."""
        first, *others = self.runs
        names = [name for name in first.figures if all(name in run.figures for run in others)]
        return {name: statistics.median(run.figures[name] for run in self.runs) for name in names}

    @property
    def ratios(self) -> dict[str, float]:
        """The median of the runs of each ratio."""
        figures = self.figures
        return {
            each.name: statistics.median(each.of(run.figures) for run in self.runs)
            for each in RATIOS
            if each.measured(figures)
        }

    @property
    def about(self) -> str:
        """The machine and the number of runs."""
        runs = f"median of {len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        return f"{runs}, {described(self.machine)}"


def machine() -> dict[str, Any]:
    """The facts about this machine that are stored with results; its load is of the last minute."""
    facts = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    return {**facts, "load": round(os.getloadavg()[0], 1)}


def described(facts: Mapping[str, Any]) -> str:
    """The machine in words."""
    busy = "; other programs ran, so rates are too low and CPU times too high" if facts["load"] > QUIET else ""
    return f"{facts['cores']} cores, Python {facts['python']}, load {facts['load']} at the start{busy}"


def as_json(content: Mapping[str, Any]) -> str:
    """The text of a file with results."""
    return json.dumps(_rounded(content), indent=1) + "\n"


def _rounded(value: Any) -> Any:
    """With as many digits as a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def table(found: Figures, title: str) -> Table:
    """The figures of a run that have an aim, for a terminal. Those over HTTP were printed when they were measured."""
    shown = Table(title=title)
    for heading in ("work", "Podium", "compared with", "", "ratio", "aim", "CPU ms each"):
        shown.add_column(heading, justify="left" if heading in {"work", "compared with"} else "right")
    for each in RATIOS:
        if each.target is not None and each.measured(found):
            rates = f"{found[each.ours]:,.0f}", each.peer, f"{found[each.theirs]:,.0f}"
            ratio = f"{each.of(found):.2f}x", f">= {each.target:g}x"
            shown.add_row(each.work, *rates, *ratio, costs(found, each.ours))
    for limit in LIMITS:
        if limit.ours in found:
            shown.add_row(limit.work, f"{found[limit.ours]:.2f} ms", "-", "", "", f"<= {limit.target_ms:g} ms")
    return shown


def costs(found: Figures, name: str) -> str:
    """The CPU milliseconds of the program and of PostgreSQL for one of these, as `API 0.75 + PostgreSQL 0.27`."""
    programs = {"api": "API", "worker": "worker", "database": "PostgreSQL"}
    parts = [
        f"{title} {found[f'{name}_{part}_ms']:.2f}" for part, title in programs.items() if f"{name}_{part}_ms" in found
    ]
    return " + ".join(parts)
