"""The figures as a chart: the aims, and Podium beside its peer for all work over HTTP."""

from collections.abc import Iterator
from html import escape

from tests.benchmarks.rows import CONNECTIONS, LIMITS, OVER_HTTP, RATIOS, Figures

WIDTH = 900
ROW, TOP = 44, 56
LEFT, RIGHT = 330, 640  # of the bars
KIND_ROW, BAR = 58, 12  # three bars for each kind of work over HTTP
STYLE = """
    text { fill: #1f2328 }
    .small { font-size: 11px; fill: #59636e }
    .number { font-variant-numeric: tabular-nums }
    .track { fill: #eaeef2 }
    .bar { fill: #4d8be0 }
    .reached { fill: #3f9d5c }
    .even { stroke: #59636e; stroke-dasharray: 3 3 }
"""


def draw(found: Figures, about: str) -> str:
    """Returns an SVG. A bar is the reached share of an aim; over HTTP, Podium's rate beside the peer's."""
    aims = [*_ratios(found), *_limits(found)]
    kinds = [kind for kind in OVER_HTTP if all(f"{kind}_{each}_peer" in found for each in CONNECTIONS)]
    longest = max([1.0, *(_beside(found, kind, each) for kind in kinds for each in CONNECTIONS)])
    second = TOP + ROW * len(aims) + 40
    height = second + KIND_ROW * len(kinds) + 8
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title"
     font-family="-apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif" font-size="13">
  <title id="title">Podium beside its peers: {escape(about)}</title>
  <style>{STYLE}  </style>
  <rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
  <text x="20" y="24" font-weight="600">Aims</text>
  <text x="20" y="42" class="small">{escape(about)}; a full bar is an aim reached</text>
{_placed(aims, TOP, ROW)}
  <text x="20" y="{second - 24}" font-weight="600">Over HTTP, one API process beside the peer</text>
  <text x="20" y="{second - 8}" class="small">{" · ".join(map(str, CONNECTIONS))} connections; line: the peer</text>
{_placed([_kind(found, kind, longest) for kind in kinds], second, KIND_ROW)}
</svg>
"""


def _placed(rows: list[str], top: int, height: int) -> str:
    places = (top + height * number for number in range(len(rows)))
    return "\n".join(f'  <g transform="translate(0 {y})">{row}</g>' for y, row in zip(places, rows, strict=True))


def _ratios(found: Figures) -> Iterator[str]:
    for each in RATIOS:
        if each.target and each.measured(found):
            both = f"{found[each.ours]:,.0f} : {found[each.theirs]:,.0f}"
            numbers = f"{both} = {each.of(found):.2f}x (aim {each.target:g}x)"
            yield _aim(each.work, f"against {each.peer}", numbers, each.of(found) / each.target)


def _limits(found: Figures) -> Iterator[str]:
    for each in LIMITS:
        if each.ours in found:
            numbers = f"{found[each.ours]:.2f} ms (aim {each.target_ms:g} ms)"
            # The added time may be zero or negative within the noise.
            yield _aim(each.work, "", numbers, each.target_ms / max(found[each.ours], 0.001))


def _aim(work: str, peer: str, numbers: str, share: float) -> str:
    length = (RIGHT - LEFT) * min(share, 1.0)
    kind = "reached" if share >= 1.0 else "bar"
    return (
        f'<text x="20" y="14">{escape(work)}</text><text x="20" y="30" class="small">{escape(peer)}</text>'
        f'<rect class="track" x="{LEFT}" y="6" width="{RIGHT - LEFT}" height="16" rx="3"/>'
        f'<rect class="{kind}" x="{LEFT}" y="6" width="{length:.1f}" height="16" rx="3"/>'
        f'<text x="{RIGHT + 12}" y="19" class="small number">{escape(numbers)}</text>'
    )


def _kind(found: Figures, kind: str, longest: float) -> str:
    title, peer, _ = OVER_HTTP[kind]
    bars = "".join(_bar(found, kind, number, longest) for number in range(len(CONNECTIONS)))
    peer_at = LEFT + (RIGHT - LEFT) / longest
    return (
        f'<text x="20" y="18">{escape(title)}</text><text x="20" y="34" class="small">against {escape(peer)}</text>'
        f'{bars}<line class="even" x1="{peer_at:.1f}" x2="{peer_at:.1f}" y1="0" y2="{(BAR + 4) * len(CONNECTIONS)}"/>'
    )


def _bar(found: Figures, kind: str, number: int, longest: float) -> str:
    connections, y = CONNECTIONS[number], 2 + (BAR + 4) * number
    ratio, ours = _beside(found, kind, connections), f"{kind}_{connections}"
    numbers = f"{found[ours]:,.0f} : {found[f'{ours}_peer']:,.0f} = {ratio:.2f}x"
    return (
        f'<text x="{LEFT - 8}" y="{y + 10}" class="small number" text-anchor="end">{connections}</text>'
        f'<rect class="bar" x="{LEFT}" y="{y}" width="{(RIGHT - LEFT) * ratio / longest:.1f}" height="{BAR}" rx="2"/>'
        f'<text x="{RIGHT + 12}" y="{y + 10}" class="small number">{escape(numbers)}</text>'
    )


def _beside(found: Figures, kind: str, connections: int) -> float:
    ours = f"{kind}_{connections}"
    return found[ours] / found[f"{ours}_peer"]
