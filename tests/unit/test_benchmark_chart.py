"""The picture of the benchmarks."""

from xml.etree import ElementTree as ET

from tests.benchmarks.chart import LEFT, RIGHT, draw
from tests.benchmarks.rows import LIMITS, RATIOS

SVG = "{http://www.w3.org/2000/svg}"


def test_the_chart_shows_both_numbers_of_each_ratio_and_a_full_bar_only_for_a_target_reached() -> None:
    """The median of the runs is drawn, whatever was reached."""
    compared = [each for each in RATIOS if each.target]
    half = {each.ours: 500.0 * (each.target or 0.0) for each in compared} | {each.theirs: 1000.0 for each in compared}
    half["registrations"] = 25_000.0
    run = half | {limit.ours: limit.target_ms * 2 for limit in LIMITS}
    picture = ET.fromstring(draw([run, dict.fromkeys(run, 0.1), run], "2 cores"))  # noqa: S314 - our own
    texts = " ".join(each.text or "" for each in picture.iter(f"{SVG}text"))
    assert "median of 3 runs, 2 cores" in texts
    assert "25,000 : 1,000 = 25.00x (target 25x)" in texts
    assert "125 : 1,000 = 0.12x (target 0.25x)" in texts
    assert "30.00 ms (target 15 ms)" in texts
    bars = [each for each in picture.iter(f"{SVG}rect") if each.get("class") in {"bar", "reached"}]
    shares = [round(float(each.get("width", "")) / (RIGHT - LEFT), 2) for each in bars]
    assert shares == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [each.get("class") for each in bars] == ["reached"] * 2 + ["bar"] * 6
