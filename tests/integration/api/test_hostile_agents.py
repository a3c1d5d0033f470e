"""Answers by which an agent could reach another caller, another header or hold a call for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import raw_pod
from tests.integration.api.raw import connected

HOST = "Host: 127.0.0.1\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
STRAY = OK + b"Content-Length: 5\r\n\r\nSTRAY"
LENGTH = b"Content-Length: 2\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"\r\n2\r\n{}\r\n0\r\n\r\n"
BODY = b"\r\n{}"

# The caller gets 502, and nothing of the answer.
REFUSED = {
    "a length and chunks": OK + LENGTH + CHUNKED + CHUNKS,
    "chunks and a length": OK + CHUNKED + b"Content-Length: 100\r\n\r\n0\r\n\r\n" + STRAY,
    "two lengths": OK + LENGTH + b"Content-Length: 20\r\n" + BODY + STRAY,
    "one length twice": OK + LENGTH + LENGTH + BODY,
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n" + BODY,
    "a length with a sign": OK + b"Content-Length: +2\r\n" + BODY,
    "a length that overflows": OK + b"Content-Length: 18446744073709551618\r\n" + BODY,
    "an unknown coding": OK + b"Transfer-Encoding: x, chunked\r\n" + CHUNKS,
    "a coding without chunks": OK + b"Transfer-Encoding: gzip\r\n" + BODY,
    "chunks and another coding": OK + b"Transfer-Encoding: chunked, identity\r\n" + CHUNKS,
    "chunks twice": OK + CHUNKED + CHUNKED + CHUNKS,
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + CHUNKED + CHUNKS,
    "a chunk that overflows": OK + CHUNKED + b"\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a chunk with a sign": OK + CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunks without carriage returns": OK + CHUNKED + b"\r\n2\n{}\n0\n\n",
    "another version": b"HTTP/2.0 200 OK\r\n" + LENGTH + BODY,
    "no head": b"{}",
    "a body of 204": b"HTTP/1.1 204 No Content\r\n" + LENGTH + BODY + STRAY,
    "chunks of 204": b"HTTP/1.1 204 No Content\r\n" + CHUNKED + CHUNKS,
    "a body of 304": b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + BODY,
    "a body of 100": b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello" + OK + LENGTH + BODY,
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw",
    "a status of two digits": b"HTTP/1.1 99 OK\r\n" + LENGTH + BODY,
    "a status of four digits": b"HTTP/1.1 1000 OK\r\n" + LENGTH + BODY,
    "a blank before the colon": OK + b"Content-Length : 2\r\n" + BODY,
    "a carriage return in a header": OK + b"X-A: b\rSet-Cookie: x\r\n" + LENGTH + BODY,
    "NUL in a header": OK + b"X-A: b\0c\r\n" + LENGTH + BODY,
    "controls in the reason": b"HTTP/1.1 200 O\rK\x1b[2J\r\n" + LENGTH + BODY,
    "a carriage return in Location": b"HTTP/1.1 201 Created\r\nLocation: /api\r\r\n" + LENGTH + BODY,
    "a header too long": OK + b"X-A: " + b"a" * 70_000 + b"\r\n" + LENGTH + BODY,
    "too many headers": OK + b"".join(b"X-%d: a\r\n" % number for number in range(5_000)) + LENGTH + BODY,
}
# The caller gets this answer once, and none of the words after it.
PASSED = {
    "two answers": OK + LENGTH + BODY + STRAY,
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + BODY,
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </STRAY>\r\n\r\n" + OK + LENGTH + BODY,
    "many interim answers": b"HTTP/1.1 102 Processing\r\nX: STRAY\r\n\r\n" * 2_000 + OK + LENGTH + BODY,
    "a folded header": OK + b"X-A: b\r\n Set-Cookie: STRAY\r\n" + LENGTH + BODY,
    "bare line ends": OK + b"X-A: b\nSet-Cookie: STRAY\n" + LENGTH + BODY,
    "trailers": OK + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nSet-Cookie: STRAY\r\nX-Podium-Generation: 9\r\n\r\n",
    "extensions of chunks": OK + CHUNKED + b"\r\n2;STRAY=" + b"a" * 20_000 + b"\r\n{}\r\n0\r\n\r\n",
    "headers of the gateway": OK + b"X-Podium-Deployment-Id: STRAY\r\nX_Podium_Generation: STRAY\r\n" + LENGTH + BODY,
    "a body of unknown length": b"HTTP/1.0 200 OK\r\n\r\n{}",
}
# A beginning, and what is then sent again and again.
ENDLESS = {
    "interim answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "a status line": (b"HTTP/1.1 200 ", b"x"),
    "headers": (OK, b"X-A: b\r\n"),
    "a header": (OK + b"X-A: ", b"b"),
    "blank lines": (b"", b"\r\n"),
}
PIECE_SECONDS = 0.02


@asynccontextmanager
async def endless_pod(beginning: bytes, piece: bytes) -> AsyncIterator[str]:
    """The address of a pod that never ends its head."""
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(beginning)
        try:
            while not closed.is_set():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(PIECE_SECONDS)
        except ConnectionError:
            pass
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        closed.set()


async def answered(api: Api, name: str) -> bytes:
    """All that a caller of this agent receives until a second request on its connection is answered."""
    async with connected(api) as connection:
        connection.send(f"POST /agents/name/{name}/rpc HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\n".encode())
        received = await connection.reader.readuntil(b"\r\n\r\n")
        while not received.endswith((b"}", b"0\r\n\r\n")):
            received += await connection.reader.read(65_536)
        connection.send(f"GET /health/live HTTP/1.1\r\n{HOST}\r\n".encode())
        assert (await connection.answer()).body == b'{"status":"live"}'
        return received


async def test_answers_that_are_not_clear_are_refused(api: Api, subtests: pytest.Subtests) -> None:
    """G93: 502, and the caller's connection goes on with its next request."""
    for number, (case, answer) in enumerate(REFUSED.items()):
        with subtests.test(case):
            async with raw_pod(answer) as pod:
                await api.register(f"bot-{number}", acp_url=pod.url)
                received = await answered(api, f"bot-{number}")
            assert received.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert b'"reason":"agent-protocol-error"' in received
            assert b"STRAY" not in received


async def test_what_surrounds_an_answer_reaches_nobody(api: Api, subtests: pytest.Subtests) -> None:
    """G93: interim answers, trailers, extensions and second answers are dropped; a header never becomes two."""
    for number, (case, answer) in enumerate(PASSED.items()):
        with subtests.test(case):
            async with raw_pod(answer) as pod:
                await api.register(f"bot-{number}", acp_url=pod.url)
                received = await answered(api, f"bot-{number}")
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert received.count(b"HTTP/1.1 ") == 1
            assert b"\r\nset-cookie" not in received.lower()
            assert b"STRAY" not in received or case == "a folded header"
            assert received.lower().count(b"podium-generation: ") == 1
            assert received.removesuffix(b"\r\n0\r\n\r\n").endswith(b"\r\n{}")


async def test_an_answer_that_never_begins_ends(serve: Serve, subtests: pytest.Subtests) -> None:
    """G93: an agent that sends its head byte by byte, or only interim answers, gets no more time than a silent one."""
    api = await serve(first_byte_timeout=timedelta(seconds=0.3), connect_timeout=timedelta(seconds=0.3))
    for number, (case, sent) in enumerate(ENDLESS.items()):
        with subtests.test(case):
            async with endless_pod(*sent) as url, asyncio.timeout(5):
                await api.register(f"bot-{number}", acp_url=url)
                answer = await api.post(f"/agents/name/bot-{number}/rpc", {"id": 1})
                answer.rpc_error(504, "first-byte-timeout", sent=True)
