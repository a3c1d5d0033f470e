"""The figures as a chart: one row per comparison, with the median of all runs and both numbers of each ratio."""

import statistics
from collections.abc import Sequence
from html import escape

from tests.benchmarks.rows import LIMITS, RATIOS, Figures

WIDTH = 900
ROW = 44
TOP = 56
LEFT, RIGHT = 330, 640  # of the bars
STYLE = """
    text { fill: #1f2328 }
    .small { font-size: 11px; fill: #59636e }
    .number { font-variant-numeric: tabular-nums }
    .track { fill: #eaeef2 }
    .bar { fill: #4d8be0 }
    .reached { fill: #3f9d5c }
"""


def draw(runs: Sequence[Figures], machine: str) -> str:
    """Returns an SVG. The length of a bar is the reached share of its target."""
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rows = [
        _row(
            each.work,
            f"against {each.peer}",
            f"{found[each.ours]:,.0f} : {found[each.theirs]:,.0f} = {each.of(found):.2f}x (target {each.target:g}x)",
            each.of(found) / each.target,
        )
        for each in RATIOS
        if each.target and each.measured(found)
    ] + [
        _row(
            each.work,
            "",
            f"{found[each.ours]:.2f} ms (target {each.target_ms:g} ms)",
            each.target_ms / max(found[each.ours], 0.001),  # the added time may be zero or negative within the noise
        )
        for each in LIMITS
    ]
    height = TOP + ROW * len(rows) + 8
    placed = "\n".join(
        f'  <g transform="translate(0 {TOP + ROW * number})">{row}</g>' for number, row in enumerate(rows)
    )
    heading = f"median of {len(runs)} run{'s' if len(runs) > 1 else ''}, {machine}; a full bar is a target reached"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title"
     font-family="-apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif" font-size="13">
  <title id="title">Podium beside its peers: {escape(heading)}</title>
  <style>{STYLE}  </style>
  <rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
  <text x="20" y="24" font-weight="600">Podium beside its peers</text>
  <text x="20" y="42" class="small">{escape(heading)}</text>
{placed}
</svg>
"""


def _row(work: str, peer: str, numbers: str, share: float) -> str:
    length = (RIGHT - LEFT) * min(share, 1.0)
    kind = "reached" if share >= 1.0 else "bar"
    return (
        f'<text x="20" y="14">{escape(work)}</text><text x="20" y="30" class="small">{escape(peer)}</text>'
        f'<rect class="track" x="{LEFT}" y="6" width="{RIGHT - LEFT}" height="16" rx="3"/>'
        f'<rect class="{kind}" x="{LEFT}" y="6" width="{length:.1f}" height="16" rx="3"/>'
        f'<text x="{RIGHT + 12}" y="19" class="small number">{escape(numbers)}</text>'
    )
