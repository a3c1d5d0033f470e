"""`podium parked`: list parked messages; show, retry or drop one."""

from typing import Annotated, Any

import typer

from podium.cli.command import LIST, CommandContext, Limit, Page, command, print_help_without_command
from podium.cli.output import Column, details, local_time, short_time

COLUMNS = [
    Column("PARKED", drop_order=3),
    Column("ID", wraps=True),
    Column("AGENT", min_width=12, drop_order=2, wraps=True),
    Column("REASON"),
    Column("WHY", min_width=24, drop_order=1, wraps=True),
    Column("SENT AGAIN", drop_order=4),
]

ParkedArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id of the parked message; see 'podium parked list'.", show_default=False),
]

parked = typer.Typer(
    name="parked",
    help="List parked messages; show, retry or drop one.\n\nA message is parked if it could not be applied.",
    invoke_without_command=True,
    subcommand_metavar="list | show ID | retry ID | drop ID",
)
parked.callback()(print_help_without_command)


@parked.command(LIST)
@command
async def list_parked(
    context: CommandContext,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Show only this agent; the agent need not exist.")
    ] = None,
    limit: Limit = 20,
    page: Page = 1,
) -> None:
    """List parked messages, newest first."""
    from podium.cli.client import agent_segment  # noqa: PLC0415 - --help starts faster without it

    name = agent_segment(agent) if agent is not None else None
    async with context.output.progress("Reading parked messages"):
        rows = await context.api.get("/parked", agent=name, limit=limit, page_number=page)
    context.output.rows(rows, [row["id"] for row in rows], COLUMNS, [_cells(row) for row in rows])
    if not rows and page == 1:
        context.output.note("There are no parked messages.")
    context.output.note_next_page(rows, limit, page)


@parked.command()
@command
async def show(context: CommandContext, message: ParkedArgument) -> None:
    """Show a parked message with its headers and body."""
    async with context.output.progress("Reading the parked message"):
        found = await context.api.get(_path(message))
    context.output.item(found, found["id"], details(_details(found)))


@parked.command()
@command
async def retry(
    context: CommandContext,
    message: ParkedArgument,
    *,
    accept_unsigned: Annotated[
        bool,
        typer.Option(
            "--accept-unsigned", help="Send it signed although it came without a valid signature. Read it first."
        ),
    ] = False,
) -> None:
    """Send a parked message again.

    It is sent with a new message id. The parked message stays until you drop it.
    """
    body = {"json": {"accept_unsigned": True}} if accept_unsigned else {}
    async with context.output.progress("Sending the message again"):
        response = await context.api.call("POST", f"{_path(message)}/retry", **body)
    sent = response.body["retry_message_id"]
    context.output.item(response.body, sent, f"Sent again as message {sent}, confirmed by the broker.")
    context.output.note(
        f"'podium registrations' shows its outcome; 'podium parked drop {message}' drops the parked message."
    )


@parked.command()
@command
async def drop(context: CommandContext, message: ParkedArgument) -> None:
    """Drop a parked message. This cannot be undone."""
    async with context.output.progress("Dropping the parked message"):
        response = await context.api.call("DELETE", _path(message))
    context.output.item(response.body, response.body["id"], response.body["message"])


def _path(message: str) -> str:
    from podium.cli.client import parked_segment  # noqa: PLC0415 - --help starts faster without it

    return f"/parked/{parked_segment(message)}"


def _cells(message: dict[str, Any]) -> list[str]:
    times = f" ({message['attempts']} times)" if message["attempts"] > 1 else ""
    return [
        short_time(message["received_at"]),
        message["id"],
        message["agent_name"] or "-",
        message["reason"],
        message["error"] + times,
        short_time(message["retried_at"]) if message["retried_at"] else "-",
    ]


def _details(message: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [
        ("parked", local_time(message["received_at"])),
        ("id", message["id"]),
        ("reason", message["reason"]),
        ("why", message["error"]),
        ("times", str(message["attempts"])),
        ("agent", message["agent_name"]),
        ("deployment", message["deployment_id"]),
        ("message id", message["message_id"]),
        ("routing key", message["routing_key"]),
        *((f"header {name}", str(value)) for name, value in message["headers"].items()),
        ("sent again", local_time(message["retried_at"]) if message["retried_at"] else None),
        ("body" if message["body_encoding"] == "utf-8" else "body, base64", message["body"]),
    ]
