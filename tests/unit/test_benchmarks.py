"""The benchmarks: what their documents say, and when a ratio counts as lost."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks import check
from tests.benchmarks.capacity import EXAMPLE, Capacity, UnitCost, needs
from tests.benchmarks.capacity import markdown as capacity_tables
from tests.benchmarks.chart import LEFT, RIGHT, draw
from tests.benchmarks.check import Verdict, compare
from tests.benchmarks.documents import inserted, markdown
from tests.benchmarks.load import Turn, Turns
from tests.benchmarks.results import Results, Run
from tests.benchmarks.rows import LIMITS, RATIOS, Figures
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
SVG = "{http://www.w3.org/2000/svg}"
TURN = Turn(
    answers=110,
    failures=10,
    seconds=2.0,
    load_seconds=1.0,
    api_seconds=0.5,
    database_seconds=0.25,
    p50_ms=1.0,
    p99_ms=3.0,
)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [(0.79, Verdict.LOST), (0.81, Verdict.KEPT), (1.0, Verdict.KEPT), (3.0, Verdict.KEPT)],
)
def test_a_ratio_is_lost_if_it_is_a_fifth_smaller_and_a_gain_is_no_loss(now: float, verdict: Verdict) -> None:
    """21 % less is too much, 19 % is not."""
    assert [each.verdict for each in compare({"a / b": 5.0}, {"a / b": 5.0 * now})] == [verdict]


def test_new_and_missing_ratios_are_named_and_no_loss(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The exit code is 0; the table says which ones they are."""
    stored, now = results({"reads_1": 5.0, "reads_1_peer": 1.0}), results({"lists_1": 5.0, "lists_1_peer": 1.0})
    compared = compare(stored.ratios, now.ratios)
    assert [(each.name, each.verdict) for each in compared] == [
        ("reads_1 / reads_1_peer", Verdict.MISSING),
        ("lists_1 / lists_1_peer", Verdict.NEW),
    ]
    assert exit_code(tmp_path, stored, now) == 0
    printed = capsys.readouterr().out
    assert "reads_1 / reads_1_peer" in printed
    assert "missing" in printed
    assert "new" in printed


def test_a_lost_ratio_is_named_and_the_exit_code_is_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Rates alone mean nothing: all of them are smaller here."""
    stored = results({"reads_1": 500.0, "reads_1_peer": 100.0, "lists_1": 100.0, "lists_1_peer": 100.0})
    assert exit_code(tmp_path, stored, results({name: rate / 3 for name, rate in stored.figures.items()})) == 0
    capsys.readouterr()
    assert exit_code(tmp_path, stored, results({**stored.figures, "reads_1": 390.0})) == 1
    assert "1 of 2 ratios lost more than 20%: reads_1 / reads_1_peer" in capsys.readouterr().out


def test_figures_are_medians_of_turns_and_runs() -> None:
    """One slow turn or run changes no figure; failed answers are no success."""
    turns = Turns([TURN, TURN, replace(TURN, seconds=20.0, p99_ms=90.0)])
    assert (turns.per_second, turns.p99_ms, turns.failures) == (50.0, 3.0, 30)
    assert (turns.api_ms, turns.database_ms) == pytest.approx((500 / 110, 250 / 110))
    runs = [{"reads_1": rate, "reads_1_peer": 10.0} for rate in (50.0, 60.0, 1.0)]
    found = Results({}, [Run(run) for run in runs])
    assert found.figures["reads_1"] == 50.0
    assert found.ratios == {"reads_1 / reads_1_peer": 5.0}


def test_the_page_and_the_chart_of_the_benchmarks_say_what_was_measured() -> None:
    """`make bench RUNS=3 RESULTS=docs/benchmarks` writes all three."""
    stored = Results.read(DOCS / "benchmarks.json")
    assert inserted(DOCS / "benchmarks.md") == markdown(stored)
    assert (DOCS / "benchmarks.svg").read_text() == draw(stored.figures, stored.about)
    ratios = json.loads((DOCS / "benchmarks.json").read_text())["ratios"]
    assert ratios == pytest.approx(stored.ratios, rel=1e-3)


def test_the_page_of_the_capacity_says_what_was_measured() -> None:
    """`make bench-capacity RESULTS=docs/capacity` writes both."""
    assert inserted(DOCS / "capacity.md") == capacity_tables(Capacity.read(DOCS / "capacity.json"))


def test_a_load_needs_its_rate_times_what_one_piece_costs() -> None:
    """CPU time of a second is in cores."""
    costs = dict.fromkeys(EXAMPLE, UnitCost(1.0, 2.0, 1.0, 0.5, 1000.0, 3.0, 100.0))
    needed = needs(costs, {"probe": 500.0})
    assert needed == {"probe": UnitCost(500.0, 1.0, 0.5, 0.25, 500_000.0, 1500.0, 50_000.0)}
    assert set(needs(costs, EXAMPLE)) == set(EXAMPLE)


def test_the_chart_shows_both_numbers_of_each_ratio_and_a_full_bar_only_for_an_aim_reached() -> None:
    """Whatever was reached is drawn."""
    aims = [each for each in RATIOS if each.target]
    half = {each.theirs: 1000.0 for each in aims} | {each.ours: 500.0 * (each.target or 0.0) for each in aims}
    half |= {limit.ours: limit.target_ms * 2 for limit in LIMITS}
    picture = ET.fromstring(draw({**half, "registrations": 9_000.0}, "2 cores"))  # noqa: S314 - our own
    texts = " ".join(each.text or "" for each in picture.iter(f"{SVG}text"))
    assert "2 cores" in texts
    assert "9,000 : 1,000 = 9.00x (aim 9x)" in texts
    assert "90 : 1,000 = 0.09x (aim 0.18x)" in texts
    assert "30.00 ms (aim 15 ms)" in texts
    bars = [each for each in picture.iter(f"{SVG}rect") if each.get("class") in {"bar", "reached"}]
    shares = [round(float(each.get("width", "")) / (RIGHT - LEFT), 2) for each in bars]
    assert shares == [1.0, 1.0, *[0.5] * (len(aims) + len(LIMITS) - 2)]


def test_the_names_of_work_fit_beside_the_bars_of_the_chart() -> None:
    """About seven pixels a letter."""
    drawn = [each.work for each in RATIOS if each.target] + [each.work for each in LIMITS]
    longest = max(map(len, drawn))
    assert longest * 7 <= LEFT - 20


def test_the_chart_shows_work_over_http_beside_the_peer_on_each_number_of_connections() -> None:
    """The longest bar is the largest ratio."""
    rates = {"reads_1": 200.0, "reads_32": 400.0, "reads_128": 800.0}
    picture = ET.fromstring(draw({**rates, **{f"{name}_peer": 100.0 for name in rates}}, "2 cores"))  # noqa: S314
    texts = " ".join(each.text or "" for each in picture.iter(f"{SVG}text"))
    assert "800 : 100 = 8.00x" in texts
    bars = [float(each.get("width", "")) for each in picture.iter(f"{SVG}rect") if each.get("class") == "bar"]
    assert [round(width / (RIGHT - LEFT), 2) for width in bars] == [0.25, 0.5, 1.0]


def results(figures: Figures) -> Results:
    """Of one run."""
    return Results({"cores": 2, "python": "3.11", "load": 0.1}, [Run(figures)])


def exit_code(folder: Path, stored: Results, now: Results) -> int:
    """Of `make bench-check` with these results."""
    (folder / "stored.json").write_text(stored.as_json())
    (folder / "now.json").write_text(now.as_json())
    return check.main(folder / "now.json", folder / "stored.json")
