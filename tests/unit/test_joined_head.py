"""The head of an answer and the beginning of its body leave together."""

import asyncio
from typing import Any

from api.http.exchange import JoinedHead


class Written(asyncio.Transport):
    """A transport that keeps what each system call would send."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closing = False

    def write(self, data: Any) -> None:
        """Keep it."""
        assert not self.closing
        self.pieces.append(bytes(data))

    def close(self) -> None:
        """Accept no more."""
        self.closing = True

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.closing


async def test_what_is_written_at_once_leaves_together() -> None:
    """What follows is sent as it comes."""
    transport = Written()
    joined = JoinedHead(transport, asyncio.get_running_loop())
    for piece in (b"head", b"body", b"more", b"end"):
        joined.write(piece)
    await asyncio.sleep(0)
    assert transport.pieces == [b"headbody", b"more", b"end"]


async def test_a_head_alone_leaves_as_soon_as_the_loop_goes_on() -> None:
    """Also if a body follows later."""
    transport = Written()
    joined = JoinedHead(transport, asyncio.get_running_loop())
    joined.write(b"head")
    assert transport.pieces == []
    await asyncio.sleep(0)
    assert transport.pieces == [b"head"]
    joined.write(b"body")
    assert transport.pieces == [b"head", b"body"]


async def test_a_head_leaves_before_the_connection_is_closed() -> None:
    """The answer may have no body."""
    transport = Written()
    joined = JoinedHead(transport, asyncio.get_running_loop())
    joined.write(b"head")
    joined.close()
    assert (transport.pieces, joined.is_closing()) == ([b"head"], True)
    await asyncio.sleep(0)
    assert transport.pieces == [b"head"]


async def test_nothing_is_written_to_a_connection_that_is_lost() -> None:
    """The head that waited is dropped."""
    transport = Written()
    joined = JoinedHead(transport, asyncio.get_running_loop())
    joined.write(b"head")
    transport.close()
    await asyncio.sleep(0)
    assert transport.pieces == []
