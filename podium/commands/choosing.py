"""Which deployment `podium promote` means where none is named: the newest that is Ready."""

from datetime import timedelta

from podium.client import Json
from podium.commands.calling import Call
from podium.commands.durations import short
from podium.commands.exits import ExitCode, Failure
from podium.commands.waiting import until

PAGE = 1000


async def choose(call: Call, agent: Json, wait: timedelta) -> str:
    """The id of the newest Ready deployment, which may be in production already; waits so long for a preview.

    Never one that is older than production: to go back is to roll back, or to name it. Raises `Failure` if there is
    none.
    """

    async def newer() -> Json | None:
        return newest_preview(await call.api.get(f"/agents/{agent['id']}/deployments", limit=PAGE))

    found = await until(call, newer, f"Waiting for a Ready preview of {agent['name']}", wait)
    if found is not None:
        return str(found["id"])
    if agent["production_deployment_id"] is not None and not wait:
        return str(agent["production_deployment_id"])
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
