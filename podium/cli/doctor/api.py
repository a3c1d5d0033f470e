"""Checks of the API: it is ready, has this version, and accepts our key."""

from collections.abc import AsyncIterator
from importlib.metadata import version

from podium.cli.client import Api
from podium.cli.doctor.checks import Check, Part
from podium.cli.exits import Failure

part = Part("API")


async def check_api(api: Api) -> AsyncIterator[Check]:
    """Run the checks, and yield each result at once."""
    try:
        servers = await api.readiness()
        # A panic says nothing about the API.
        janitors = servers.pop("janitors", {"ok": True})
        broken = [f"{name} {server['detail']}" for name, server in servers.items() if not server["ok"]]
        if broken:
            yield part.failed(
                f"{api.url} is not ready: {', '.join(broken)}", "see the checks of PostgreSQL and RabbitMQ"
            )
        else:
            yield part.ok(f"{api.url} is ready")
            if not janitors["ok"]:
                yield part.failed(f"{api.url} reports: {janitors['detail']}", "see the log of that janitor's worker")
        yield _version((await api.get("/openapi.json"))["info"]["version"])
        if not broken:
            await api.get("/agents", limit=1)
            yield part.ok("it accepts our requests")
    except Failure as failure:
        finding, _, advice = failure.message.partition(": ")
        yield part.failed(finding, advice or "read the log of the API")


def _version(api_version: str) -> Check:
    own_version = version("podium")
    if api_version != own_version:
        return part.warning(
            f"it is version {api_version}, this command is {own_version}", "run the same version everywhere"
        )
    return part.ok(f"it is version {api_version}, as this command")
