"""Decoding of message properties that the AMQP client cannot decode by itself.

The broker accepts text that is not UTF-8, and timestamps outside the calendar, such as nanoseconds. The client library
raises an exception on them, which closes the connection. The broker then redelivers all unacknowledged messages to the
next consumer, whose connection closes too, until every one of these messages has reached its delivery limit.
"""

from typing import Any

from pamqp import decode

# Replaces a table of headers that cannot be decoded. The value is the table's bytes.
UNREADABLE_HEADER = "x-podium-unreadable"


def tolerate_invalid_properties() -> None:
    """Patch the client library in this process: properties that cannot be decoded are replaced or left out."""
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
    """The table; its raw bytes if a name is not UTF-8 or tables are nested too deep."""
    try:
        return decode.field_table(value)
    except (ValueError, RecursionError):
        length = int.from_bytes(value[:4])
        return length + 4, {UNREADABLE_HEADER: bytearray(value[4 : length + 4])}
