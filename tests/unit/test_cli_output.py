import io

import pytest
from rich.console import Console

from podium.cli.output import Column, details, served_name, table
from podium.printable import plain

ID = "f83ade97-cd80-4118-b406-c150d9181d0e"
COLUMNS = [
    Column("DEPLOYMENT", wraps=True),
    Column("STATUS"),
    Column("AGE", drop_order=1),
    Column("IMAGE", min_width=20, drop_order=2),
]
ROW = [ID, "Ready", "3d 4h", "registry.example.com/team/support-bot:2026-11-23"]


def printed(rows: list[list[str]], width: int, columns: list[Column] | None = None) -> list[str]:
    """The lines at a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(columns or COLUMNS, rows, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 10_000])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """At any width, with any number of rows."""
    lines = printed([ROW, ["v1", "Pending", "1s", "unknown"]], width)
    assert all(len(line) <= width for line in lines)


def test_columns_are_dropped_before_ids_are_wrapped() -> None:
    """At 60 columns the image is dropped; id and status are whole, on one line."""
    lines = printed([ROW], 60)
    assert len(lines) == 2
    assert ID in lines[1]
    assert "Ready" in lines[1]
    assert "IMAGE" not in lines[0]


def test_long_text_is_cut_before_its_column_is_dropped() -> None:
    """At 80 columns the beginning of the image is shown."""
    lines = printed([ROW], 80)
    assert "IMAGE" in lines[0]
    assert "registry.example.com/" in lines[1]
    assert lines[1].rstrip().endswith("…")


def test_nothing_is_cut_if_there_is_room() -> None:
    """A pipe has room for all."""
    assert ROW[-1] in printed([ROW], 10_000)[1]


def test_an_id_is_wrapped_if_it_is_too_wide() -> None:
    """All of its characters are shown."""
    lines = printed([ROW], 30)
    assert "".join(line[:22].strip() for line in lines[1:]) == ID


def test_control_characters_have_no_effect() -> None:
    """Markup, escape sequences and line ends of a description are not interpreted."""
    nasty = "[red]no[/red] \x1b[31mred\r\nsecond \u202eline"
    assert plain(nasty) == "[red]no[/red]  [31mred  second  line"
    lines = printed([[nasty]], 80, [Column("DESCRIPTION")])
    assert lines[1].rstrip() == plain(nasty)


def test_details_have_one_line_each() -> None:
    """Names on the left, values on the right."""
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(details([("agent", "bot"), ("status", "Ready")]))
    assert isinstance(console.file, io.StringIO)
    assert [line.split() for line in console.file.getvalue().splitlines()] == [["agent", "bot"], ["status", "Ready"]]


def test_the_name_of_what_served() -> None:
    """A deployment, the legacy address, or nothing."""
    assert served_name("v1", "http://a") == "v1"
    assert served_name(None, "http://a") == "legacy http://a"
    assert served_name(None, None) == "nothing"
