"""If-Match: a change only if what serves is unchanged since the caller read it (RFC 9110, section 13.1.1)."""

import re
from collections.abc import Mapping, Sequence

from services.errors import InvalidRequest

GENERATION_HEADER = "x-podium-generation"

# Nineteen digits hold every generation that PostgreSQL can store.
_GENERATION = re.compile(r'"(0|[1-9][0-9]{0,18})"')


def expected_generation(if_match: Sequence[str]) -> int | None:
    """The generation in the values of If-Match; None for any generation. Raises `InvalidRequest`."""
    if not if_match or list(if_match) == ["*"]:
        return None
    match = _GENERATION.fullmatch(if_match[0]) if len(if_match) == 1 else None
    if match is None:
        message = 'If-Match must be one generation in quotes, such as "3" (the ETag of the agent), or *.'
        raise InvalidRequest(message, field="If-Match")
    return int(match[1])


def generation_headers(generation: int) -> Mapping[str, str]:
    """The generation as `x-podium-generation`, and as the ETag that a caller sends as If-Match."""
    return {GENERATION_HEADER: str(generation), "etag": f'"{generation}"'}
