"""`podium events`: what has happened, and with --follow what happens, each event on a line as soon as it is there."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from podium.cli.calling import Call, command
from podium.cli.exits import ExitCode, Failure
from podium.cli.printing import read_enough

if TYPE_CHECKING:
    from aiohttp import ClientResponse

# As the API asks its clients to.
RECONNECT_SECONDS = 1.0
LONGEST_NAME = len("deployment.promoted")

Event = dict[str, Any]


@dataclass
class Reader:
    """Where one reads, and up to where one has read."""

    call: Call
    path: str
    query: list[tuple[str, str]]
    with_agent: bool
    cursor: str | None = None
    events: int = 0

    async def read(self) -> None:
        """Print what comes until the stream ends. Raises `Failure`."""
        headers = {} if self.cursor is None else {"last-event-id": self.cursor}
        async with self.call.api.stream(f"{self.path}?{urlencode(self.query)}", headers=headers) as response:
            await self._print(response)

    async def _print(self, response: "ClientResponse") -> None:
        rest = b""
        async for chunk in response.content.iter_any():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                self._take(block.decode(errors="replace"))

    def _take(self, block: str) -> None:
        """A block of the stream: fields, each on a line; one without data only moves the cursor."""
        fields = {name: value for name, _, value in (line.partition(": ") for line in block.split("\n"))}
        cursor = fields.get("id", self.cursor or "")
        if "data" in fields:
            self.events += 1
            _write(self._line(json.loads(fields["data"]), cursor))
        self.cursor = cursor or None

    def _line(self, event: Event, cursor: str) -> str:
        from podium.cli.plain import plain  # noqa: PLC0415 - --help starts faster without it

        if self.call.screen.as_json:
            return json.dumps({**event, "cursor": cursor}, ensure_ascii=False)
        if self.call.screen.quiet:
            return plain(event["id"])
        return plain(described(event, with_agent=self.with_agent))


@command
async def events(
    call: Call,
    named: Annotated[str | None, typer.Argument(metavar="AGENT", help="As --agent.", show_default=False)] = None,
    *,
    agent: Annotated[str | None, typer.Option(metavar="AGENT", help="Only those of this agent.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay, and print what comes.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help="Only what comes after it; 'oldest' is all there is. Default: oldest, with --follow from now on.",
        ),
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only these, such as deployment.promoted.")
    ] = None,
) -> None:
    """Print events, one per line, as JSON with the cursor to go on from."""
    if named is not None and agent is not None and named != agent:
        raise typer.BadParameter("name one agent.", param_hint="--agent")
    wanted = agent or named
    async with call.screen.progress("Asking for the agent"):
        path = "/events" if wanted is None else f"/agents/{(await call.api.agent(wanted))['id']}/events"
    query = [("follow", str(follow).lower()), *(("type", _full(each)) for each in types or [])]
    if since is not None or not follow:
        query.append(("since", since or "oldest"))
    reader = Reader(call, path, query, with_agent=wanted is None)
    if follow:
        await _stay(reader)
    await reader.read()
    if not reader.events:
        call.screen.remark("There are no such events.")
    elif reader.cursor is not None:
        call.screen.remark(f"What comes after these: --since {reader.cursor}.")


async def _stay(reader: Reader) -> None:
    """Read for ever, and go on where it broke off. Raises `Failure` if the API is not there at first, or refuses."""
    away = False
    while True:
        try:
            await reader.read()
            away = False
        except Failure as failure:
            if failure.code != ExitCode.UNAVAILABLE or reader.cursor is None:
                raise
            if not away:
                reader.call.screen.remark("Podium is away; going on once it is back.")
            away = True
        await asyncio.sleep(RECONNECT_SECONDS)


def described(event: Event, *, with_agent: bool) -> str:
    """The event on one line for people."""
    from podium.cli.wording import clock  # noqa: PLC0415 - --help starts faster without it

    name = event["type"].removeprefix("podium.").rpartition(".v")[0]
    data = event["data"]
    whose = [event["agentname"]] if with_agent else []
    subject = [data["deployment_id"]] if "deployment_id" in data else []
    return "  ".join([clock(event["time"]), name.ljust(LONGEST_NAME), *whose, *subject, *_details(data)]).rstrip()


def _details(data: Event) -> list[str]:
    if "cause" in data:
        because = f": {data['reason']}" if data["reason"] else ""
        return [f"generation {data['generation']}, {data['cause']} by {data['actor']}{because}"]
    details = data.get("reason") or data.get("acp_url") or data.get("docker_image")
    return [str(details)] if details else []


def _full(event_type: str) -> str:
    """The type as the API calls it: `deployment.promoted` is short for `podium.deployment.promoted.v1`."""
    return event_type if event_type.startswith("podium.") else f"podium.{event_type}.v1"


def _write(line: str) -> None:
    """Print at once."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        read_enough()
