"""`podium events`: print past events, and with --follow also new ones, each on its own line."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from podium.cli.command import AgentFilter, CommandContext, command, one_agent
from podium.cli.exits import ExitCode, Failure
from podium.cli.output import end_at_closed_pipe, short_time
from podium.printable import json_text, plain

if TYPE_CHECKING:
    from aiohttp import ClientResponse

# The API recommends this pause to its clients (`retry:` in the stream).
RECONNECT_SECONDS = 1.0
TYPE_WIDTH = len("deployment.promoted")

Event = dict[str, Any]


@dataclass
class EventReader:
    """Reads one stream of events, and continues after `cursor` when it is opened again."""

    context: CommandContext
    path: str
    query: list[tuple[str, str]]
    with_agent: bool
    cursor: str | None = None
    events: int = 0

    async def read(self) -> None:
        """Print events until the stream ends. Raises `Failure`."""
        headers = {} if self.cursor is None else {"last-event-id": self.cursor}
        async with self.context.api.stream(f"{self.path}?{urlencode(self.query)}", headers=headers) as response:
            await self._print(response)

    async def _print(self, response: "ClientResponse") -> None:
        rest = b""
        async for chunk in response.content.iter_any():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                self._print_block(block.decode(errors="replace"))

    def _print_block(self, block: str) -> None:
        """Print the event in a block of the stream; a block without data only moves the cursor."""
        fields = {name: value for name, _, value in (line.partition(": ") for line in block.split("\n"))}
        cursor = fields.get("id", self.cursor or "")
        if "data" in fields:
            self.events += 1
            _write(self._line(json.loads(fields["data"]), cursor))
        self.cursor = cursor or None

    def _line(self, event: Event, cursor: str) -> str:
        if self.context.output.as_json:
            return json_text({**event, "cursor": cursor})
        if self.context.output.quiet:
            return plain(event["id"])
        return plain(_describe(event, with_agent=self.with_agent))


@command
async def events(
    context: CommandContext,
    named: AgentFilter = None,
    *,
    agent: Annotated[str | None, typer.Option(metavar="AGENT", help="Print only events of this agent.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep running, and print new events.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help="Print only events after this cursor. Default: 'oldest', which is all events; with --follow only new "
            "ones.",
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Print only this type, such as deployment.promoted; repeatable."),
    ] = None,
) -> None:
    """Print events, one per line.

    With --json, each event has the cursor after which to continue.
    """
    name_or_id = one_agent(named, agent)
    path = "/events"
    if name_or_id is not None:
        async with context.output.progress("Reading the agent"):
            path = f"/agents/{(await context.api.agent(name_or_id))['id']}/events"
    query = [("follow", str(follow).lower()), *(("type", _full_type(each)) for each in types or [])]
    if since is not None or not follow:
        query.append(("since", since or "oldest"))
    reader = EventReader(context, path, query, with_agent=name_or_id is None)
    if follow:
        await _follow(reader)
    await reader.read()
    if not reader.events:
        context.output.note("There are no such events.")
    elif reader.cursor is not None:
        context.output.note(f"To continue after these events: --since {reader.cursor}.")


async def _follow(reader: EventReader) -> None:
    """Read until the process ends; reconnect when the API was unavailable.

    Raises `Failure` if the first connection fails, or if the API refuses.
    """
    unavailable = False
    while True:
        try:
            await reader.read()
            unavailable = False
        except Failure as failure:
            if failure.code != ExitCode.UNAVAILABLE or reader.cursor is None:
                raise
            if not unavailable:
                reader.context.output.note("The API is unavailable. Reconnecting ...")
            unavailable = True
        await asyncio.sleep(RECONNECT_SECONDS)


def _describe(event: Event, *, with_agent: bool) -> str:
    name = event["type"].removeprefix("podium.").rpartition(".v")[0]
    data = event["data"]
    agent = [event["agentname"]] if with_agent else []
    deployment = [data["deployment_id"]] if "deployment_id" in data else []
    return "  ".join([short_time(event["time"]), name.ljust(TYPE_WIDTH), *agent, *deployment, *_details(data)]).rstrip()


def _details(data: Event) -> list[str]:
    if "cause" in data:
        reason = f": {data['reason']}" if data["reason"] else ""
        return [f"generation {data['generation']}, {data['cause']} by {data['actor']}{reason}"]
    details = data.get("reason") or data.get("acp_url") or data.get("docker_image")
    return [str(details)] if details else []


def _full_type(event_type: str) -> str:
    """The API's name of a type: `deployment.promoted` is short for `podium.deployment.promoted.v1`."""
    return event_type if event_type.startswith("podium.") else f"podium.{event_type}.v1"


def _write(line: str) -> None:
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        end_at_closed_pipe()
