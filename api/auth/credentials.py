"""The credentials in the headers of a request."""

from typing import Any

from litestar.connection import ASGIConnection

Connection = ASGIConnection[Any, Any, Any, Any]

_BEARER = b"bearer "


def api_keys(connection: Connection) -> list[str]:
    """The bearer tokens, and the values of x-api-key."""
    keys = []
    for name, value in connection.scope["headers"]:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            keys.append(_text(value[len(_BEARER) :].strip()))
        elif name == b"x-api-key":
            keys.append(_text(value))
    return [key for key in keys if key]


def header_values(connection: Connection, name: bytes) -> list[str]:
    """All values of a header, including those that are not UTF-8."""
    return [_text(value) for key, value in connection.scope["headers"] if key == name]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
