"""The command `podium open`."""

import webbrowser

import typer

from podium.cli.command import CommandContext, command
from podium.cli.exits import ExitCode, Failure
from podium.printable import plain


@command
async def open_console(context: CommandContext) -> None:
    """Open the console in a browser.

    Prints its address too, for machines without a browser.
    """
    url = f"{context.api.url}/console/agents"
    await context.api.readiness()
    if context.output.as_json:
        context.output.json({"url": url})
        return
    typer.echo(plain(url))
    if not context.output.quiet and not webbrowser.open(url):
        raise Failure("No browser could be started on this machine: open the address above.", ExitCode.FAILED)
