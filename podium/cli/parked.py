"""`podium parked`: messages that could not be applied; one of them; sending one again; dropping one."""

from typing import Annotated, Any

import typer

from podium.cli.calling import Call, Limit, Page, command
from podium.cli.tables import Column, facts
from podium.cli.wording import clock, local

LIST = "list"

COLUMNS = [
    Column("PARKED", leaves=3),
    Column("ID", folds=True),
    Column("AGENT", least=12, leaves=2, folds=True),
    Column("REASON"),
    Column("WHY", least=24, leaves=1, folds=True),
    Column("SENT AGAIN", leaves=4),
]

ParkedArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="The parked message's id: 'podium parked list' names them.", show_default=False),
]

parked = typer.Typer(
    name="parked",
    help="List what could not be applied, or show, retry or drop one.",
    invoke_without_command=True,
    subcommand_metavar="list | show ID | retry ID | drop ID",
)


@parked.callback()
def _no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@command
async def list_parked(
    call: Call,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Only those of this agent; its name need not exist.")
    ] = None,
    limit: Limit = 20,
    page: Page = 1,
) -> None:
    """List messages that could not be applied, newest first."""
    from podium.cli.segments import agent_segment  # noqa: PLC0415 - --help starts faster without it

    name = agent_segment(agent) if agent is not None else None
    async with call.screen.progress("Asking for parked messages"):
        found = await call.api.get("/parked", agent=name, limit=limit, page_number=page)
    call.screen.rows(found, [each["id"] for each in found], COLUMNS, [_row(each) for each in found])
    if not found and page == 1:
        call.screen.remark("Nothing is parked.")
    if len(found) == limit:
        call.screen.remark(f"There may be more: --page {page + 1}.")


@command
async def show(call: Call, message: ParkedArgument) -> None:
    """Show one parked message with its body."""
    async with call.screen.progress("Asking for the parked message"):
        found = await call.api.get(_path(message))
    call.screen.one(found, found["id"], facts(_facts(found)))


@command
async def retry(call: Call, message: ParkedArgument) -> None:
    """Send a parked message again, under a new message id; it stays parked until it is dropped."""
    async with call.screen.progress("Sending it again"):
        answer = await call.api.call("POST", f"{_path(message)}/retry")
    sent = answer.body["retry_message_id"]
    call.screen.one(answer.body, sent, f"Sent again as message {sent}, confirmed by the broker.")
    call.screen.remark(f"'podium registrations' says what became of it; then 'podium parked drop {message}'.")


@command
async def drop(call: Call, message: ParkedArgument) -> None:
    """Drop a parked message for good."""
    async with call.screen.progress("Dropping"):
        answer = await call.api.call("DELETE", _path(message))
    call.screen.one(answer.body, answer.body["id"], answer.body["message"])


parked.command(LIST)(list_parked)
parked.command()(show)
parked.command()(retry)
parked.command()(drop)


def _path(message: str) -> str:
    from podium.cli.segments import parked_segment  # noqa: PLC0415 - --help starts faster without it

    return f"/parked/{parked_segment(message)}"


def _row(message: dict[str, Any]) -> list[str]:
    times = f" ({message['attempts']} times)" if message["attempts"] > 1 else ""
    return [
        clock(message["received_at"]),
        message["id"],
        message["agent_name"] or "-",
        message["reason"],
        message["error"] + times,
        clock(message["retried_at"]) if message["retried_at"] else "-",
    ]


def _facts(message: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [
        ("parked", local(message["received_at"])),
        ("id", message["id"]),
        ("reason", message["reason"]),
        ("why", message["error"]),
        ("times", str(message["attempts"])),
        ("agent", message["agent_name"]),
        ("deployment", message["deployment_id"]),
        ("message id", message["message_id"]),
        ("routing key", message["routing_key"]),
        *((f"header {name}", str(value)) for name, value in message["headers"].items()),
        ("sent again", local(message["retried_at"]) if message["retried_at"] else None),
        ("body" if message["body_encoding"] == "utf-8" else "body, base64", message["body"]),
    ]
    return [(name, value) for name, value in pairs if value]
