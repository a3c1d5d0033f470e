"""The command `podium doctor`."""

from collections.abc import AsyncIterator

from rich.text import Text

from podium.cli.command import CommandContext, command
from podium.cli.doctor.checks import Check, Verdict
from podium.cli.exits import ExitCode, Failure
from podium.printable import plain

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@command
async def doctor(context: CommandContext) -> None:
    """Check every setting and server.

    Each problem is shown with advice. The exit code is 1 if a check fails; warnings do not change it.
    """
    output = context.output
    checks: list[Check] = []
    async with output.progress("Checking settings and servers") as progress:
        async for check in _checks(context):
            progress.text = f"Checking {check.part}"
            checks.append(check)
    if output.as_json:
        output.json([check.as_json() for check in checks])
    else:
        shown = [check for check in checks if not (output.quiet and check.verdict is Verdict.OK)]
        for check in shown:
            line = Text(f"{check.verdict:<8}", style=STYLES[check.verdict])
            advice = f"; {check.advice}" if check.advice else ""
            line.append(f" {check.part:<11} {plain(check.finding)}{plain(advice)}", style="default")
            output.show(line)
    failed = sum(check.verdict is Verdict.FAILED for check in checks)
    if failed:
        raise Failure(f"{failed} of {len(checks)} checks failed; each has its advice above.", ExitCode.FAILED)


async def _checks(context: CommandContext) -> AsyncIterator[Check]:
    from podium.cli.doctor.api import check_api  # noqa: PLC0415 - --help starts faster without it
    from podium.cli.doctor.broker import check_broker  # noqa: PLC0415 - as above
    from podium.cli.doctor.database import check_database  # noqa: PLC0415 - as above
    from podium.cli.doctor.settings import check_settings  # noqa: PLC0415 - as above

    settings, settings_checks = check_settings(context.environment)
    for check in settings_checks:
        yield check
    for checks in (check_database(settings), check_broker(settings), check_api(context.api)):
        async for check in checks:
            yield check
