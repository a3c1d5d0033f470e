"""What a caller may send: so many bytes of headers, so many of body, in so much time."""

import asyncio
from datetime import timedelta

from litestar.types import HTTPScope, Receive

from services.errors import MessageTooLarge, PodiumError

# As much as common servers take; agents' own servers mostly take less, and say so themselves.
HEADERS_MAX_BYTES = 64 * 1024


class CallerLeft(Exception):
    """The caller is gone; nobody waits for an answer."""


class HeadersTooLarge(MessageTooLarge):
    """The headers are too large."""

    status = 431
    reason = "headers-too-large"


class BodyTimeout(PodiumError):
    """The request did not arrive in time."""

    status = 408
    reason = "body-timeout"


def check_headers(scope: HTTPScope) -> None:
    """Raise `HeadersTooLarge` if they are, with the path and the query."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    if size + sum(len(name) + len(value) for name, value in scope["headers"]) > HEADERS_MAX_BYTES:
        raise HeadersTooLarge


async def read_body(scope: HTTPScope, receive: Receive, limit: int, time_limit: timedelta) -> bytes:
    """The whole body. Raises `MessageTooLarge` before it is read any further, `BodyTimeout`, `CallerLeft`."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if announced.isdigit() and int(announced) > limit:
        raise MessageTooLarge(f"The body is larger than {limit} bytes.")
    piece, more = await _piece(receive)
    if not more and len(piece) <= limit:
        # Nearly every call: all of it is here at once.
        return piece
    body = bytearray(piece)
    try:
        async with asyncio.timeout(time_limit.total_seconds()):
            while more and len(body) <= limit:
                piece, more = await _piece(receive)
                body += piece
    except TimeoutError as exc:
        raise BodyTimeout from exc
    if more or len(body) > limit:
        raise MessageTooLarge(f"The body is larger than {limit} bytes.")
    return bytes(body)


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there are more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise CallerLeft
    assert message["type"] == "http.request"
    return message["body"], message["more_body"]
