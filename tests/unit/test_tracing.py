import pytest

from api.gateway.headers import child_of, request_headers

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-01", 1),
        (f"00-{TRACE}-{PARENT}-00", 0),
        (f"00-{TRACE}-{PARENT}-ff", 1),
        (f"cc-{TRACE}-{PARENT}-01", 1),
        (f"cc-{TRACE}-{PARENT}-01-a-later-field", 1),
    ],
)
def test_a_trace_is_continued(given: str, flags: int) -> None:
    """The trace id stays, the span id is new, and flags that version 00 does not define are dropped."""
    span = child_of([given.encode()])
    assert span.continued
    assert (span.trace_id, span.flags) == (TRACE, flags)
    assert span.span_id != PARENT
    assert span.traceparent == f"00-{TRACE}-{span.span_id}-0{flags}"


@pytest.mark.parametrize(
    "given",
    [
        [],
        [""],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE}-{PARENT}"],
        [f" 00-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01\n"],
        [f"cc-{TRACE}-{PARENT}-01more"],
        [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"],
    ],
)
def test_an_invalid_trace_starts_a_new_one(given: list[str]) -> None:
    """The new trace has new ids each time, and no tracestate of the invalid one."""
    first, second = (child_of([each.encode() for each in given]) for _ in range(2))
    assert not first.continued
    assert len({first.trace_id, second.trace_id, TRACE}) == 3
    assert child_of([first.traceparent.encode()]).trace_id == first.trace_id
    headers, _ = request_headers([*((b"traceparent", each.encode()) for each in given), (b"tracestate", b"a=b")])
    assert "tracestate" not in headers
    assert len(headers.getall("traceparent")) == 1


def test_tracestate_is_forwarded_with_its_trace() -> None:
    """Unchanged, in as many headers as it had."""
    given = [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"tracestate", b"a=b"), (b"tracestate", b"c=d")]
    headers, span = request_headers(given)
    assert headers.getall("tracestate") == ["a=b", "c=d"]
    assert headers["traceparent"] == span.traceparent
