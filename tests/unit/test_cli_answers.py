import io

import pytest

from podium.cli.answers import ErrorWatch
from podium.cli.printing import Printer


def watched(*chunks: bytes) -> str | None:
    """What the watch makes of an answer that comes in these chunks."""
    watch = ErrorWatch()
    for chunk in chunks:
        watch.see(chunk)
    return watch.end()


@pytest.mark.parametrize(
    "chunks",
    [
        [b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}'],
        [b'{"jsonrpc":"2.0",', b'"id":1,"err', b'or":{"message":"no"}}'],
        [b'{\n  "id": 1,\n  "error": {\n    "message": "no"\n  }\n}\n'],
        [b'{"result":1}\n{"result":2}\n{"error":{"message":"no"}}\n{"result":3}\n'],
        [b": comment\r\n\r\nevent: message\r\nda", b'ta: {"error":{"message":"no"}}\r\n\r\n'],
        [b'[{"result":1},{"error":{"message":"no"}}]'],
        [b'{"error":"no"}'],
    ],
)
def test_an_error_is_found_however_the_answer_comes(chunks: list[bytes]) -> None:
    """As one document, in pieces, as JSON lines, as Server-Sent Events, in a batch."""
    assert watched(*chunks) == "no"


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [b'{"result":{"error":{"message":"that of somebody else"}}}'],
        [b'{"result":1,"error":null}'],
        [b"<html>error</html>"],
        [b'{"cut off'],
        [b"[1, 2]", b"\n", b"null"],
        [b"\xff\xfe{"],
    ],
)
def test_nothing_else_is_an_error(chunks: list[bytes]) -> None:
    """Only `error` of an answer itself counts."""
    assert watched(*chunks) is None


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_a_terminal_gets_harmless_text_that_ends_its_line() -> None:
    """Escape sequences are not obeyed, and characters that are cut in two come out whole."""
    terminal = Terminal()
    printer = Printer(terminal)
    for chunk in (b"\x1b]0;title\x07 caf\xc3", b"\xa9\r\n{}"):
        printer.print(chunk)
    printer.end()
    assert terminal.getvalue() == " ]0;title  café\n{}\n"
    printer.end()


def test_a_pipe_gets_the_bytes() -> None:
    """Not one is added or changed."""
    raw = io.BytesIO()
    printer = Printer(io.TextIOWrapper(raw))
    printer.print(b"\x1b\xff\r\n{}")
    printer.end()
    assert raw.getvalue() == b"\x1b\xff\r\n{}"
