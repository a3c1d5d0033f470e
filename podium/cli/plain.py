"""Text that is safe to show: much of what a terminal gets here was written by strangers."""


def plain(text: str) -> str:
    """The text on one line and without characters that a terminal obeys."""
    return "".join(character if character.isprintable() else " " for character in text)
