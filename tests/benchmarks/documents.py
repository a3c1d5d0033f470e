"""The tables of results in Markdown, and the page that shows them."""

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.results import Results, costs
from tests.benchmarks.rows import CONNECTIONS, LIMITS, OVER_HTTP, RATIOS, WITHOUT_HTTP, Figures

BEGIN, END = "<!-- written by make bench: begin -->\n", "<!-- written by make bench: end -->\n"


def insert(page: Path, text: str) -> None:
    """Write the text between the two markers of the page, if it is there and has them."""
    if page.exists() and inserted(page) is not None:
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}{text}{END}{after}")


def inserted(page: Path) -> str | None:
    """The text between the two markers of the page; None if it does not have them."""
    _, begin, rest = page.read_text().partition(BEGIN)
    text, end, _ = rest.partition(END)
    return text if begin and end else None


def markdown(results: Results) -> str:
    """All results that readers need, as text and tables."""
    return "\n".join([f"Measured: {results.about}.", "", *_aims(results), "", *_over_http(results.figures), ""])


def _aims(results: Results) -> Iterator[str]:
    found, ratios = results.figures, results.ratios
    yield "| work | Podium | compared with | ratio | aim | |"
    yield "|---|---|---|---|---|---|"
    for each in RATIOS:
        if each.measured(found) and (each in WITHOUT_HTTP or each.target is not None):
            ratio = ratios[each.name]
            cells = each.work, _rate(found[each.ours]), f"{each.peer}: {_rate(found[each.theirs])}", f"{ratio:.2f}x"
            aim = ("", "") if each.target is None else (f">= {each.target:g}x", _verdict(reached=ratio >= each.target))
            yield row(*cells, *aim)
    for limit in LIMITS:
        if limit.ours in found:
            shown = f"{found[limit.ours]:.2f} ms"
            reached = found[limit.ours] <= limit.target_ms
            yield row(limit.work, shown, "", "", f"<= {limit.target_ms:g} ms", _verdict(reached=reached))


def _over_http(found: Figures) -> Iterator[str]:
    yield "| over HTTP | connections | Podium | peer | ratio | limit | ratio | CPU ms each, Podium | peer |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for kind, (title, _, _) in OVER_HTTP.items():
        for connections in CONNECTIONS:
            ours = f"{kind}_{connections}"
            peer, limit = f"{ours}_peer", f"{ours}_limit"
            if {ours, peer, limit} <= found.keys():
                cells = [f"`{title}`" if title.startswith("GET") else title, str(connections), _rate(found[ours])]
                for other in (peer, limit):
                    cells += [_rate(found[other]), f"{found[ours] / found[other]:.2f}x"]
                yield row(*cells, costs(found, ours), costs(found, peer))
    names = [name for each in CONNECTIONS if (name := f"forwards_{each}") in found]
    rates = ", ".join(f"{found[name] / found[f'{name}_warning']:.2f}x" for name in names)
    cpu = ", ".join(f"{found[f'{name}_api_ms'] / found[f'{name}_warning_api_ms']:.2f}x" for name in names)
    yield ""
    yield f"RPC forwards at the log level `info`, the default, beside `warning`, on 1, 32 and 128 connections: {rates}"
    yield f"of the rate, and {cpu} of the API's CPU for each."


def _rate(value: float) -> str:
    return f"{value:,.0f}/s"


def _verdict(*, reached: bool) -> str:
    return "reached" if reached else "missed"


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
