"""`podium doctor`: looks at every setting and server, and says what to do."""

from collections.abc import AsyncIterator

from rich.text import Text

from podium.cli.calling import Call, command
from podium.cli.doctor.checks import Check, Verdict
from podium.cli.exits import ExitCode, Failure
from podium.cli.plain import plain

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@command
async def doctor(call: Call) -> None:
    """Check every setting and server, and say what to do."""
    checks: list[Check] = []
    async with call.screen.progress("Looking at settings and servers") as doing:
        async for check in _all(call):
            doing.text = f"Looking at {check.part}"
            checks.append(check)
    if call.screen.as_json:
        call.screen.json([check.answer() for check in checks])
    else:
        shown = [check for check in checks if not (call.screen.quiet and check.verdict is Verdict.OK)]
        for check in shown:
            line = Text(f"{check.verdict:<8}", style=STYLES[check.verdict])
            advice = f"; {check.advice}" if check.advice else ""
            line.append(f" {check.part:<11} {plain(check.finding)}{plain(advice)}", style="default")
            call.screen.show(line)
    failed = sum(check.verdict is Verdict.FAILED for check in checks)
    if failed:
        raise Failure(f"{failed} of {len(checks)} checks failed; each says what to do.", ExitCode.FAILED)


async def _all(call: Call) -> AsyncIterator[Check]:
    from podium.cli.doctor.api import check_api  # noqa: PLC0415 - --help starts faster without it
    from podium.cli.doctor.broker import check_broker  # noqa: PLC0415 - as above
    from podium.cli.doctor.database import check_database  # noqa: PLC0415 - as above
    from podium.cli.doctor.settings import read_settings  # noqa: PLC0415 - as above

    settings, findings = read_settings(call.environment)
    for finding in findings:
        yield finding
    for part in (check_database(settings), check_broker(settings), check_api(call.api)):
        async for finding in part:
            yield finding
