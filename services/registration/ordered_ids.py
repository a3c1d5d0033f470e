"""Message ids for registrations that arrive without one."""

import secrets
import time
from uuid import UUID

# RFC 9562, section 5.8: a layout of our own, with the time in front, in units of two nanoseconds.
_VERSION = 8
_LOW_BITS = 12
_RANDOM_BITS = 62


class OrderedIds:
    """Message ids of one process, each greater than all before it.

    Registrations that are decided together have the same time, so the greatest id wins: the last that arrived.
    """

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> UUID:
        """The next id."""
        self._last = now = max(time.time_ns() >> 1, self._last + 1)
        high, low = now >> _LOW_BITS, now & ((1 << _LOW_BITS) - 1)
        return UUID(int=high << 80 | _VERSION << 76 | low << 64 | 0b10 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS))
