"""Requests by which a caller could hide one request in another, or that another program would read differently."""

import pytest
from pydantic import SecretStr

from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod
from tests.integration.api.raw import connected

KEY = "k" * 32
LINE = b"POST /agents/name/bot/rpc HTTP/1.1"
CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: 2"
# It would delete the agent, if it were taken for a request.
HIDDEN = b"DELETE /agents/name/bot HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\n\r\n" % KEY.encode()
AFTER_CHUNKS = b"0\r\n\r\n" + HIDDEN


def a_request(*headers: bytes, body: bytes = b"", line: bytes = LINE, host: bytes = b"Host: h\r\n") -> bytes:
    """A request with a valid key."""
    head = line + b"\r\n" + host + b"Authorization: Bearer " + KEY.encode() + b"\r\n"
    return head + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def chunks(body: bytes) -> bytes:
    """A request with this encoded body."""
    return a_request(CHUNKED, body=body)


def with_coding(value: bytes, *more: bytes) -> bytes:
    """A request with this transfer coding, whose body hides another request."""
    return a_request(b"Transfer-Encoding:" + value, *more, body=AFTER_CHUNKS)


def with_length(value: bytes, body: bytes = b"{}") -> bytes:
    """A request with this length."""
    return a_request(b"Content-Length:" + value, body=body)


def with_line(line: bytes, *headers: bytes, host: bytes = b"Host: h\r\n") -> bytes:
    """A request with this first line."""
    return a_request(*headers or (LENGTH,), body=b"" if headers else b"{}", line=line, host=host)


REFUSED = {
    "length, then chunks": a_request(b"Content-Length: %d" % len(AFTER_CHUNKS), CHUNKED, body=AFTER_CHUNKS),
    "chunks, then length": a_request(
        CHUNKED, b"Content-Length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    ),
    "two codings in two headers": with_coding(b" chunked", b"Transfer-Encoding: x"),
    "two codings": with_coding(b" x, chunked"),
    "another coding": with_coding(b" gzip, chunked"),
    "another coding at the end": with_coding(b" chunked, identity"),
    "chunks twice": with_coding(b" chunked, chunked"),
    "no chunks": with_coding(b" gzip"),
    "a misspelt coding": with_coding(b" xchunked", b"Content-Length: 5"),
    "a quoted coding": with_coding(b' "chunked"', b"Content-Length: 5"),
    "a coding after a vertical tab": with_coding(b"\x0bchunked", b"Content-Length: 5"),
    "a coding before a vertical tab": with_coding(b" chunked\x0b", b"Content-Length: 5"),
    "a coding after a tab": with_coding(b"\tchunked", b"Content-Length: 5"),
    "a folded coding": with_coding(b"\r\n chunked", b"Content-Length: 5"),
    "a blank before the colon of the coding": a_request(b"Transfer-Encoding : chunked", body=AFTER_CHUNKS),
    "a blank before the colon of the length": a_request(b"Content-Length : 2", body=b"{}"),
    "chunks in HTTP/1.0": a_request(CHUNKED, body=AFTER_CHUNKS, line=LINE.replace(b"1.1", b"1.0")),
    "two lengths": a_request(LENGTH, b"Content-Length: %d" % (2 + len(HIDDEN)), body=b"{}" + HIDDEN),
    "one length twice": a_request(LENGTH, LENGTH, body=b"{}"),
    "a list of lengths": with_length(b" 2, 2"),
    "a list of different lengths": with_length(b" 2, 20"),
    "a length with a plus": with_length(b" +2"),
    "a length with a minus": with_length(b" -2"),
    "a hexadecimal length": with_length(b" 0x2"),
    "a length with a blank": with_length(b" 2 2", b"{}" * 11),
    "a length with an underscore": with_length(b" 1_0", b"{}" * 5),
    "an empty length": with_length(b" "),
    "a length that overflows": with_length(b" 18446744073709551618"),
    "a length of other digits": with_length(" \uff12".encode()),
    "bare line feeds": a_request(LENGTH, body=b"{}").replace(b"\r\n", b"\n"),
    "a bare line feed in a header": a_request(b"X-A: b\n" + CHUNKED, b"Content-Length: 5", body=AFTER_CHUNKS),
    "a bare carriage return in a header": a_request(b"X-A: b\r" + CHUNKED, b"Content-Length: 5", body=AFTER_CHUNKS),
    "a bare line feed at the end of the head": a_request(LENGTH, b"X-A: b\n"),
    "a folded header": a_request(b"X-A: b\r\n c", LENGTH, body=b"{}"),
    "a first header that is folded": a_request(b" X: y", LENGTH, body=b"{}", host=b""),
    "NUL in a value": a_request(b"X-A: b\0c", LENGTH, body=b"{}"),
    "NUL in a name": a_request(b"X-\0A: b", LENGTH, body=b"{}"),
    "no colon": a_request(b"X-A", LENGTH, body=b"{}"),
    "no name": a_request(b": x", LENGTH, body=b"{}"),
    "two hosts": a_request(b"Host: evil.test", LENGTH, body=b"{}"),
    "no host": a_request(LENGTH, body=b"{}", host=b""),
    "a target at another host": with_line(b"POST http://evil.test/agents/name/bot/rpc HTTP/1.1"),
    "a target with a user": with_line(b"POST http://h@evil.test/agents/name/bot/rpc HTTP/1.1"),
    "a host without a path": with_line(b"POST evil.test:80 HTTP/1.1"),
    "a tunnel": with_line(b"CONNECT evil.test:80 HTTP/1.1"),
    "a fragment": with_line(b"POST /agents/name/bot/rpc#x HTTP/1.1"),
    "a control character in the target": with_line(b"POST /agents/name/bot/rpc\x01 HTTP/1.1"),
    "a byte above 127 in the target": with_line(b"POST /agents/name/bot/rpc?\xff HTTP/1.1"),
    "a blank in the target": with_line(b"POST /agents/name/bot/rpc x HTTP/1.1"),
    "tabs in the first line": with_line(b"POST\t/agents/name/bot/rpc\tHTTP/1.1"),
    "a blank before the first line": b" " + a_request(LENGTH, body=b"{}"),
    "a method in lower case": with_line(b"post /agents/name/bot/rpc HTTP/1.1"),
    "HTTP/0.9": b"GET /health/live\r\n\r\n",
    "HTTP/1.2": with_line(b"GET /health/live HTTP/1.2", b"X: y"),
    "HTTP/1.10": with_line(b"GET /health/live HTTP/1.10", b"X: y"),
    "HTTP/2.0": with_line(b"GET /health/live HTTP/2.0", b"X: y"),
    "the beginning of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a size of a chunk that overflows": chunks(b"10000000000000002\r\n{}\r\n" + AFTER_CHUNKS),
    "a size with a plus": chunks(b"+2\r\n{}\r\n" + AFTER_CHUNKS),
    "a size with a minus": chunks(b"-2\r\n{}\r\n" + AFTER_CHUNKS),
    "a size with 0x": chunks(b"0x2\r\n{}\r\n" + AFTER_CHUNKS),
    "a size before a blank": chunks(b"2 \r\n{}\r\n" + AFTER_CHUNKS),
    "a size after a blank": chunks(b" 2\r\n{}\r\n" + AFTER_CHUNKS),
    "no size": chunks(b"\r\n{}\r\n" + AFTER_CHUNKS),
    "chunks with bare line feeds": chunks(b"2\n{}\n0\n\n" + HIDDEN),
    "a chunk without an end": chunks(b"2\r\n{}" + AFTER_CHUNKS),
    "a chunk that ends with a line feed": chunks(b"2\r\n{}\n" + AFTER_CHUNKS),
    "an extension that ends with a line feed": chunks(b"2;a\n{}\r\n" + AFTER_CHUNKS),
    "an extension with a carriage return": chunks(b"2;a\rb\r\n{}\r\n" + AFTER_CHUNKS),
    "an extension with an open quote": chunks(b'2;a="\r\n{}\r\n' + AFTER_CHUNKS),
    "a length among the trailers": chunks(b"2\r\n{}\r\n0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN),
}
# Valid, if rare: the agent receives these two bytes, and the connection stays open.
SERVED = {
    "blanks after the length": with_length(b" 2  "),
    "zeros before the length": with_length(b" 00000000000000000002"),
    "an absolute target at the same host": with_line(b"POST http://H/agents/name/bot/rpc HTTP/1.1"),
    "blank lines before the first line": b"\r\n\r\n" + a_request(LENGTH, body=b"{}"),
    "an extension": chunks(b"2;a=b\r\n{}\r\n0\r\n\r\n"),
    "headers that some servers take for those of the framing": a_request(
        b"Content_Length: 5", b"Transfer_Encoding: chunked", b"X_Api_Key: k", b"X_Forwarded_For: 1", LENGTH, body=b"{}"
    ),
}


async def test_ambiguous_requests_are_refused(serve: Serve, pod: Pod, subtests: pytest.Subtests) -> None:
    """G94: 400 and the end of the connection; neither the request nor what it hides is executed."""
    api = await serve(api_key=SecretStr(KEY))
    api.session.headers["authorization"] = f"Bearer {KEY}"
    await api.register("bot", acp_url=pod.url)
    for case, request in REFUSED.items():
        with subtests.test(case):
            pod.seen.clear()
            async with connected(api, seconds=5) as connection:
                connection.send(request)
                answer = await connection.answer()
                assert answer.status_line == "HTTP/1.1 400 Bad Request"
                assert await connection.ended() == b""
            assert not pod.seen
    assert (await api.get("/agents/name/bot")).status == 200


async def test_rare_requests_are_served(serve: Serve, pod: Pod, subtests: pytest.Subtests) -> None:
    """G94: the agent receives the body with one length, and none of the headers that another name hides."""
    api = await serve(api_key=SecretStr(KEY))
    api.session.headers["authorization"] = f"Bearer {KEY}"
    await api.register("bot", acp_url=pod.url)
    for case, request in SERVED.items():
        with subtests.test(case):
            pod.seen.clear()
            async with connected(api, seconds=5) as connection:
                for _ in range(2):
                    connection.send(request)
                    assert (await connection.answer()).status_line == "HTTP/1.1 200 OK"
            for seen in pod.seen:
                assert seen.body == b"{}"
                assert seen.header("content-length") == ["2"]
                assert not seen.header("transfer-encoding")
                assert not [name for name, _ in seen.headers if "_" in name]
            assert len(pod.seen) == 2
