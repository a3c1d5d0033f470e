"""Challenges of agents that authenticate their callers themselves: `WWW-Authenticate` of their answers."""

import re
from collections.abc import Iterable

# https://www.rfc-editor.org/rfc/rfc9728#section-3
WELL_KNOWN = "/.well-known/oauth-protected-resource"
CHALLENGE = b"www-authenticate"

# The challenges that a program answers. Others have a browser ask its user for a password, in the name of the gateway.
_CHALLENGE = re.compile(rb"(?:bearer|dpop)(?:\s|$)", re.IGNORECASE)
_METADATA_PARAMETER = re.compile(rb'resource_metadata\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)', re.IGNORECASE)


def returned_challenges(values: Iterable[bytes], metadata_url: str) -> list[bytes]:
    """The agent's `WWW-Authenticate` for the caller: the metadata it names are those on the gateway."""
    parameter = f'resource_metadata="{metadata_url}"'.encode()
    return [_METADATA_PARAMETER.sub(lambda _: parameter, value) for value in values if _CHALLENGE.match(value)]
