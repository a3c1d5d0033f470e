"""Text of agents and callers, made harmless for terminals and log files.

Some characters that are not printable move the cursor, change colours, open links, reorder the line or hide in it.
"""

import json
import re
from typing import Any

# Invisible characters and those that reorder a line, in which text can hide: https://www.unicode.org/reports/tr36/
# Those that languages and emoji need are kept: the marks and joiners of U+200C to U+200F.
_HIDDEN = "\u00ad\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_HARMFUL = re.compile(f"[{_CONTROL}{_HIDDEN}]")


def plain(text: str) -> str:
    """The text on one line: a blank for each character that is not printable."""
    return "".join(character if character.isprintable() else " " for character in text)


def plain_lines(text: str) -> str:
    """The text with its line ends and tabs: a blank for each other character that acts on a terminal or hides text."""
    return _HARMFUL.sub(" ", text.replace("\r\n", "\n"))


def escaped(text: str) -> str:
    """The text on one line: an escape, as in a Python string, for each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def json_text(content: Any, indent: int | None = None) -> str:  # noqa: ANN401 - JSON
    """JSON in which each character that is not printable is escaped; letters of all languages are not."""
    written = json.dumps(content, indent=indent, ensure_ascii=False)
    # Outside strings, only the line ends are not printable.
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in written
    )
