"""Reading what strangers write into the properties of a message.

The broker passes on text that is no UTF-8 and times beyond the calendar, such as nanoseconds; the library that decodes
frames raises on them. That ends the connection: everything in hand is delivered again to whoever comes next, whom it
kills as well, until the broker has given all of it up.
"""

from typing import Any

from pamqp import decode

# Stands for a table of headers that cannot be read, with what it was.
UNREADABLE_HEADER = "x-podium-unreadable"


def read_anything() -> None:
    """From now on this process reads every message that the broker delivers; what cannot be read is left out of it."""
    decode.METHODS |= {"shortstr": _short_text, "table": _table, "timestamp": _timestamp}
    decode.TABLE_MAPPING |= {b"F": _table, b"T": _timestamp}


def _short_text(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode(errors="replace")


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    """Names that are no UTF-8, or tables in tables in tables: whichever it is, its length is known."""
    try:
        return decode.field_table(value)
    except (ValueError, RecursionError):
        length = int.from_bytes(value[:4])
        return length + 4, {UNREADABLE_HEADER: bytearray(value[4 : length + 4])}
