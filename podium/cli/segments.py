"""Names and ids as parts of a path: what can be none is refused before anybody is asked."""

import re
from urllib.parse import quote
from uuid import UUID

from contracts.fields import AGENT_NAME_PATTERN, DEPLOYMENT_ID_PATTERN
from podium.cli.exits import ExitCode, Failure


def is_agent_id(text: str) -> bool:
    """Whether this can be an agent's id. It can be a name all the same."""
    return _is_uuid(text)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def agent_segment(name: str) -> str:
    """The name as a part of a path. Raises `Failure` for what can be none."""
    return _segment(name, AGENT_NAME_PATTERN, "is no agent's name or id: small letters, digits and hyphens")


def deployment_segment(deployment_id: str) -> str:
    """The deployment id as a part of a path. Raises `Failure` for what can be none."""
    return _segment(deployment_id, DEPLOYMENT_ID_PATTERN, "is no deployment id: letters, digits, '.', '_' and '-'")


def parked_segment(parked_id: str) -> str:
    """The parked message's id as a part of a path. Raises `Failure` for what can be none."""
    if not _is_uuid(parked_id):
        raise Failure(f"{parked_id!r} is no parked message's id: 'podium parked list' lists them.", ExitCode.USAGE)
    return parked_id.lower()


def _segment(text: str, pattern: str, complaint: str) -> str:
    if not re.fullmatch(pattern, text):
        raise Failure(f"{text!r} {complaint}.", ExitCode.USAGE)
    return quote(text, safe="")
