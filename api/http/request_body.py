"""Reading a request under limits: bytes of headers, bytes of body, and time; and detecting a disconnect."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

from litestar.types import HTTPScope, Receive

from services.errors import MessageTooLarge, PodiumError

# The limit of common servers. Most agents' servers have a lower one, and answer with their own error.
HEADERS_MAX_BYTES = 64 * 1024
# The extension of Podium's server in an ASGI scope: calls a function once the client has disconnected.
ON_DISCONNECT = "podium.on_disconnect"


class ClientDisconnected(Exception):
    """The client has disconnected, so no answer can be sent."""


class HeadersTooLarge(MessageTooLarge):
    """The headers are too large."""

    status = 431
    reason = "headers-too-large"


class BodyTimeout(PodiumError):
    """The request did not arrive in time."""

    status = 408
    reason = "body-timeout"


def check_headers(scope: HTTPScope) -> None:
    """Raise `HeadersTooLarge` if headers, path and query are together larger than `HEADERS_MAX_BYTES`."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    if size + sum(len(name) + len(value) for name, value in scope["headers"]) > HEADERS_MAX_BYTES:
        raise HeadersTooLarge


async def read_body(
    scope: HTTPScope, receive: Receive, limit: int, time_limit: timedelta, admit: Callable[[int], Awaitable[None]]
) -> bytes:
    """The whole body. Raises `MessageTooLarge` as soon as it exceeds `limit`, `BodyTimeout`, `ClientDisconnected`.

    `admit` is awaited with the size of the body: the announced one, and the one so far if more arrives. What it raises
    ends the reading.
    """
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    size = int(announced) if announced.isdigit() else 0
    if size > limit:
        raise MessageTooLarge(f"The body is larger than {limit} bytes.")
    if size:
        await admit(size)
    piece, more = await _piece(receive)
    if len(piece) > size:
        await admit(len(piece))
    if not more and len(piece) <= limit:
        # Most bodies arrive in one piece.
        return piece
    body = bytearray(piece)
    try:
        async with asyncio.timeout(time_limit.total_seconds()):
            while more and len(body) <= limit:
                piece, more = await _piece(receive)
                body += piece
                if len(body) > size:
                    await admit(len(body))
    except TimeoutError as exc:
        raise BodyTimeout from exc
    if more or len(body) > limit:
        raise MessageTooLarge(f"The body is larger than {limit} bytes.")
    return bytes(body)


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected. Call it after the body is read."""
    with suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass


def on_disconnect(scope: HTTPScope, receive: Receive, act: Callable[[], None]) -> Callable[[], None]:
    """Have `act` called once the client has disconnected; call what is returned to end that, and ignore `act` then.

    Call it after the body is read.
    """
    watch: Callable[[Callable[[], None]], Callable[[], None]] | None
    watch = (scope.get("extensions") or {}).get(ON_DISCONNECT)  # type: ignore[assignment]
    if watch is not None:
        return watch(act)
    # Another server tells it only to those who wait for it.
    watching = asyncio.create_task(until_disconnect(receive))
    watching.add_done_callback(lambda _: act())

    def end() -> None:
        watching.cancel()

    return end


async def while_connected(work: Coroutine[Any, Any, None], scope: HTTPScope, receive: Receive) -> None:
    """Run `work`, and cancel it as soon as the client has disconnected. Call it after the body is read.

    Raises `ClientDisconnected` then.
    """
    task = asyncio.current_task()
    assert task is not None
    disconnected = finished = False

    def cancel() -> None:
        nonlocal disconnected
        if not finished:
            disconnected = True
            task.cancel()

    stop_watching = on_disconnect(scope, receive, cancel)
    try:
        await work
    except asyncio.CancelledError:
        if disconnected and task.uncancel() == 0:
            raise ClientDisconnected from None
        raise
    finally:
        finished = True
        stop_watching()


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether more follow."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    assert message["type"] == "http.request"
    return message["body"], message["more_body"]
