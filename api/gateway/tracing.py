"""The trace that a call belongs to (https://www.w3.org/TR/trace-context/): continued, or begun where there is none."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# Later versions may add more behind the flags; version ff is invalid, and so are ids of zeros.
_GIVEN = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})"
    rb"(?P<more>-.*)?"
)
_SAMPLED = 1
_VERSION = "00"


@dataclass(frozen=True, slots=True)
class Span:
    """The gateway's part of a trace: the agent's parent."""

    trace_id: str
    span_id: str
    flags: int
    continued: bool

    @property
    def traceparent(self) -> str:
        """As it is sent to the agent."""
        return f"{_VERSION}-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def child_of(given: Sequence[bytes]) -> Span:
    """A span under the caller's, or the first of a trace if the caller sent no valid `traceparent`, or several."""
    found = _GIVEN.fullmatch(given[0]) if len(given) == 1 else None
    if found is None or (found["version"] == _VERSION.encode() and found["more"]):
        return Span(os.urandom(16).hex(), os.urandom(8).hex(), _SAMPLED, continued=False)
    # A new parent must not hand on flags that this version does not know.
    return Span(found["trace"].decode(), os.urandom(8).hex(), int(found["flags"], 16) & _SAMPLED, continued=True)
