import io

import pytest

from podium.cli.rpc import ErrorDetector, Printer


def error_in(*chunks: bytes) -> str | None:
    """The error that is found in an answer of these chunks."""
    detector = ErrorDetector()
    for chunk in chunks:
        detector.feed(chunk)
    return detector.end()


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
def test_an_error_is_found_in_every_form_of_answer(chunks: list[bytes]) -> None:
    """One document, several chunks, JSON lines, Server-Sent Events, a batch."""
    assert error_in(*chunks) == "no"


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
    """Only the member `error` of the answer itself counts."""
    assert error_in(*chunks) is None


class Terminal(io.StringIO):
    """A text stream that reports itself as a terminal."""

    def isatty(self) -> bool:
        """Always true."""
        return True


def test_a_terminal_gets_text_without_control_characters_and_a_last_line_end() -> None:
    """Escape sequences have no effect, and a character that is split over two chunks is printed whole."""
    terminal = Terminal()
    printer = Printer(terminal)
    for chunk in (b"\x1b]0;title\x07 caf\xc3", b"\xa9\r\n{}"):
        printer.print(chunk)
    printer.end()
    assert terminal.getvalue() == " ]0;title  café\n{}\n"
    printer.end()


def test_a_pipe_gets_the_bytes_unchanged() -> None:
    """No byte is added or changed."""
    raw = io.BytesIO()
    printer = Printer(io.TextIOWrapper(raw))
    printer.print(b"\x1b\xff\r\n{}")
    printer.end()
    assert raw.getvalue() == b"\x1b\xff\r\n{}"
