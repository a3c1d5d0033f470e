"""`podium doctor` on the API: ready, of this version, and open to us."""

from collections.abc import AsyncIterator
from importlib.metadata import version

from podium.cli.client import Api
from podium.cli.doctor.checks import Check, Examination
from podium.cli.exits import Failure

about = Examination("API")


async def check_api(api: Api) -> AsyncIterator[Check]:
    """The findings, as they are made."""
    try:
        parts = await api.readiness()
        broken = [f"{name} {part['detail']}" for name, part in parts.items() if not part["ok"]]
        if broken:
            yield about.failed(f"{api.url} is not ready: {', '.join(broken)}", "see what PostgreSQL and RabbitMQ say")
        else:
            yield about.ok(f"{api.url} is ready")
        yield _version((await api.get("/openapi.json"))["info"]["version"])
        if not broken:
            await api.get("/agents", limit=1)
            yield about.ok("it takes us for a caller")
    except Failure as failure:
        finding, _, advice = failure.sentence.partition(": ")
        yield about.failed(finding, advice or "see its log")


def _version(theirs: str) -> Check:
    ours = version("podium")
    if theirs != ours:
        return about.warning(f"it is version {theirs}, this is {ours}", "run the same version everywhere")
    return about.ok(f"it is version {theirs}, as this is")
