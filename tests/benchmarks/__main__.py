"""`make bench`: compares Podium with common implementations and with the limits of the servers.

    python -m tests.benchmarks [--runs 3] [--results docs/benchmarks] [--release WHEEL]

`--results NAME` writes all numbers to NAME.json and the chart to NAME.svg, and the table into NAME.md if there is one.

Caveats: the servers, the load and the measured program share one machine, so the numbers compare programs and say
little about one program alone. The backlog is published before the measurement starts. The peers do less than Podium.
"""

import argparse
import sys
from pathlib import Path

from tests.benchmarks.chart import draw
from tests.benchmarks.documents import insert, markdown
from tests.benchmarks.results import Results, table
from tests.benchmarks.rows import FULL, console
from tests.benchmarks.run import measure


def main(runs: int, results: str | None, release: Path | None) -> None:
    """Measure everything `runs` times, print a table after each run, write the results."""
    found: Results = measure(runs, FULL, release, lambda each, title: console.print(table(each, title)))
    if results is not None:
        Path(f"{results}.json").write_text(found.as_json())
        # The file has fewer digits.
        stored = Results.read(Path(f"{results}.json"))
        Path(f"{results}.svg").write_text(draw(stored.figures, stored.about))
        insert(Path(f"{results}.md"), markdown(stored))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure Podium, its peers and the limits.")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--results", default=None, help="write all numbers and the chart to files with this name")
    parser.add_argument("--release", type=Path, default=None, help="a wheel of an earlier release, measured as well")
    options = parser.parse_args()
    try:
        main(options.runs, options.results, options.release)
    except KeyboardInterrupt:
        sys.exit("Stopped: nothing was written.")
