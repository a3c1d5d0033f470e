"""Which deployment `podium promote` means where none is named: the newest that is Ready."""

from datetime import timedelta

from podium.cli.calling import Call
from podium.cli.client import Json
from podium.cli.durations import short
from podium.cli.exits import ExitCode, Failure
from podium.cli.waiting import until

PAGE = 1000


async def choose(call: Call, agent: Json, wait: timedelta) -> str | None:
    """The id of the newest Ready preview, waited for so long; None if production is newer than all that are Ready.

    Raises `Failure` if nothing is in production either, or the time is over.
    """

    async def newer() -> Json | None:
        return newest_preview(await call.api.get(f"/agents/{agent['id']}/deployments", limit=PAGE))

    found = await until(call, newer, f"Waiting for a Ready preview of {agent['name']}", wait)
    if found is not None:
        return str(found["id"])
    if agent["production_deployment_id"] is not None and not wait:
        return None
    raise _none(agent, wait)


def newest_preview(deployments: list[Json]) -> Json | None:
    """The newest Ready preview of a list that is ordered so; None if production is newer than all that are Ready."""
    ready = (each for each in deployments if each["is_production"] or each["status"] == "Ready")
    newest = next(ready, None)
    return None if newest is None or newest["is_production"] else newest


def _none(agent: Json, wait: timedelta) -> Failure:
    if wait:
        return Failure(
            f"No preview of {agent['name']} newer than production was Ready within {short(wait)}: "
            f"'podium registrations --agent {agent['name']}' says what became of announcements.",
            ExitCode.TIMED_OUT,
        )
    return Failure(
        f"{agent['name']} has no Ready preview: --wait 10m waits for one, "
        f"'podium deployments {agent['name']}' lists all.",
        ExitCode.CONFLICT,
    )
