"""What the API's values are called for people."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from podium.cli.durations import short

NOTHING = "nothing"


def moment(text: str | None) -> datetime | None:
    """A time of the API."""
    return datetime.fromisoformat(text) if text else None


def local(text: str | None) -> str:
    """A time of the API, on the clock of who reads it."""
    found = moment(text)
    return found.astimezone().strftime("%Y-%m-%d %H:%M:%S") if found else "-"


def clock(text: str) -> str:
    """A time of the API, of today without its date."""
    date, _, time = local(text).partition(" ")
    return time if date == f"{datetime.now().astimezone():%Y-%m-%d}" else f"{date} {time}"


def age(text: str | None) -> str:
    """How long ago a time of the API is."""
    found = moment(text)
    return short(datetime.now(UTC) - found) if found else "-"


def serves(agent: Mapping[str, Any]) -> str:
    """What serves an agent."""
    return served(agent["production_deployment_id"], agent["acp_url"])


def served(deployment_id: str | None, acp_url: str | None) -> str:
    """What served: a deployment, the legacy address, or nothing."""
    if deployment_id is not None:
        return deployment_id
    return f"legacy {acp_url}" if acp_url is not None else NOTHING


def role(deployment: Mapping[str, Any]) -> str:
    """What a deployment is to its agent."""
    if deployment["expires_at"] is not None:
        return "deleted"
    return "production" if deployment["is_production"] else "preview"
