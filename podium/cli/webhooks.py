"""`podium webhooks`: create, list, show, pause, resume, replay, rotate, test and delete webhooks."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from podium.cli.command import LIST, CommandContext, Limit, Page, command, print_help_without_command
from podium.cli.durations import format_duration, parse_duration, parse_time
from podium.cli.exits import ExitCode, Failure
from podium.cli.output import Column, age, details, local_time, short_time

COLUMNS = [
    Column("ID", wraps=True),
    Column("STATUS"),
    Column("AGENT", min_width=8, drop_order=2, wraps=True),
    Column("EVENTS", min_width=10, drop_order=4, wraps=True),
    Column("WAITING", drop_order=1),
    Column("MISSED", drop_order=3),
    Column("URL", min_width=16, drop_order=5, wraps=True),
]
DELIVERY_COLUMNS = [
    Column("ID"),
    Column("AT"),
    Column("AGENT", min_width=8, drop_order=2, wraps=True),
    Column("EVENT", min_width=12, wraps=True),
    Column("SEQUENCE", drop_order=3),
    Column("ATTEMPT", drop_order=4),
    Column("OUTCOME"),
    Column("ANSWER", min_width=16, drop_order=1, wraps=True),
]
NOW = "now"

WebhookArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the webhook; see 'podium webhooks list'.", show_default=False)
]
AgentOption = Annotated[str | None, typer.Option(metavar="AGENT", help="Only those of this agent.")]

webhooks = typer.Typer(
    name="webhooks",
    help="Send events to receivers by HTTP, in order.",
    invoke_without_command=True,
    subcommand_metavar="list | create URL | show ID | deliveries ID | test ID | pause ID | resume ID | replay ID | "
    "rotate ID | delete ID",
)
webhooks.callback()(print_help_without_command)


@webhooks.command(LIST)
@command
async def list_webhooks(
    context: CommandContext, *, agent: AgentOption = None, limit: Limit = 50, page: Page = 1
) -> None:
    """List webhooks, oldest first."""
    from podium.cli.client import agent_segment  # noqa: PLC0415 - --help starts faster without it

    name = agent_segment(agent) if agent is not None else None
    async with context.output.progress("Reading the webhooks"):
        rows = await context.api.get("/webhooks", agent=name, limit=limit, page_number=page)
    context.output.rows(rows, [row["id"] for row in rows], COLUMNS, [_cells(row) for row in rows])
    if not rows and page == 1:
        context.output.note("There are no webhooks: 'podium webhooks create' makes one.")
    context.output.note_next_page(rows, limit, page)


@webhooks.command()
@command
async def create(
    context: CommandContext,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent by POST.", show_default=False)],
    *,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Only events of this agent. Default: of all agents.")
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Only events of this type, or a prefix such as 'podium.deployment.'; repeat it for more.",
        ),
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is for.")] = None,
    owner: Annotated[str | None, typer.Option(metavar="TEXT", help="Whom to ask about it.")] = None,
) -> None:
    """Create a webhook and print its secret, which cannot be read again."""
    body: dict[str, Any] = {
        "url": url,
        "agent": agent,
        "event_types": event or None,
        "description": description,
        "owner": owner,
    }
    async with context.output.progress("Creating the webhook"):
        issued = (await context.api.call("POST", "/webhooks", json=body)).body
    _show_secret(context, issued)


@webhooks.command()
@command
async def show(context: CommandContext, webhook: WebhookArgument) -> None:
    """Show a webhook: its status, what waits, and what it has missed."""
    async with context.output.progress("Reading the webhook"):
        found = await context.api.get(_path(webhook))
    _show(context, found)


@webhooks.command()
@command
async def deliveries(
    context: CommandContext,
    webhook: WebhookArgument,
    *,
    before: Annotated[int | None, typer.Option(min=1, metavar="ID", help="Show only attempts before this one.")] = None,
    limit: Limit = 20,
) -> None:
    """List the last attempts to deliver events, newest first."""
    async with context.output.progress("Reading the deliveries"):
        rows = await context.api.get(f"{_path(webhook)}/deliveries", limit=limit, before=before)
    cells = [_delivery_cells(row) for row in rows]
    context.output.rows(rows, [str(row["id"]) for row in rows], DELIVERY_COLUMNS, cells)
    if not rows and before is None:
        context.output.note("Nothing was sent to this webhook yet.")
    elif len(rows) == limit:
        context.output.note(f"Older attempts: --before {rows[-1]['id']}")


@webhooks.command()
@command
async def test(context: CommandContext, webhook: WebhookArgument) -> None:
    """Send a test event now and print what the receiver says; exit code 1 unless it accepts it."""
    async with context.output.progress("Sending a test event"):
        answer = (await context.api.call("POST", f"{_path(webhook)}/test")).body
    status = "no answer" if answer["status"] is None else f"status {answer['status']}"
    said = f": {answer['detail']}" if answer["detail"] else ""
    context.output.item(answer, answer["outcome"], f"{answer['outcome']} ({status}, {answer['seconds']:.2f} s){said}")
    if answer["outcome"] != "accepted":
        raise Failure("The receiver did not accept the test event.", ExitCode.FAILED)


@webhooks.command()
@command
async def pause(context: CommandContext, webhook: WebhookArgument) -> None:
    """Send no events until the webhook is resumed."""
    async with context.output.progress("Pausing the webhook"):
        changed = (await context.api.call("POST", f"{_path(webhook)}/pause")).body
    context.output.item(changed, changed["id"], f"Webhook {changed['id']} is paused.")


@webhooks.command()
@command
async def resume(
    context: CommandContext,
    webhook: WebhookArgument,
    *,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Drop what waits; send only events after this cursor, or 'now'."),
    ] = None,
) -> None:
    """Send events again, where the webhook was or from a cursor; also one that is disabled."""
    async with context.output.progress("Resuming the webhook"):
        changed = (await context.api.call("POST", f"{_path(webhook)}/resume", json={"cursor": cursor})).body
    context.output.item(changed, changed["id"], f"Webhook {changed['id']} is active.")


@webhooks.command()
@command
async def replay(
    context: CommandContext,
    webhook: WebhookArgument,
    *,
    since: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Events since this time, or for this long: 2h."),
    ] = None,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Events after this cursor of 'podium events'.")
    ] = None,
) -> None:
    """Send stored events again, each agent's in order, and then those that follow."""
    if (since is None) == (cursor is None):
        raise typer.BadParameter("give either --since or --cursor.", param_hint="--since")
    body = {"cursor": cursor} if since is None else {"since": since.astimezone(UTC).isoformat()}
    async with context.output.progress("Replaying events"):
        changed = (await context.api.call("POST", f"{_path(webhook)}/replay", json=body)).body
    status = changed["status"]
    when = "" if status == "active" else f" once it is resumed: it is {status}"
    context.output.item(changed, changed["id"], f"Webhook {changed['id']} gets these events again{when}.")


@webhooks.command()
@command
async def rotate(
    context: CommandContext,
    webhook: WebhookArgument,
    overlap: Annotated[
        timedelta,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How long deliveries are signed with the secret before, too.",
        ),
    ] = "0s",  # type: ignore[assignment]  # Typer parses it
) -> None:
    """Give a webhook a new secret and print it. It cannot be read again."""
    body = {"overlap_seconds": overlap.total_seconds()}
    async with context.output.progress("Rotating the secret"):
        issued = (await context.api.call("POST", f"{_path(webhook)}/rotate", json=body)).body
    _show_secret(context, issued)
    if overlap:
        context.output.note(f"Deliveries are signed with the secret before it, too, for {format_duration(overlap)}.")


@webhooks.command()
@command
async def delete(context: CommandContext, webhook: WebhookArgument) -> None:
    """Delete a webhook. This cannot be undone."""
    async with context.output.progress("Deleting the webhook"):
        gone = (await context.api.call("DELETE", _path(webhook))).body
    context.output.item(gone, gone["id"], gone["message"])


def _path(webhook: str) -> str:
    from podium.cli.client import webhook_segment  # noqa: PLC0415 - --help starts faster without it

    return f"/webhooks/{webhook_segment(webhook)}"


def _show_secret(context: CommandContext, issued: dict[str, Any]) -> None:
    pairs = [
        ("webhook", issued["id"]),
        ("secret", issued["secret"]),
        ("url", issued["url"]),
        ("agent", _agent(issued)),
        ("events", _events(issued)),
    ]
    context.output.item(issued, issued["secret"], details(pairs))
    context.output.note("Store the secret now: it cannot be read again.")


def _show(context: CommandContext, webhook: dict[str, Any]) -> None:
    reason = f" ({webhook['status_reason']})" if webhook["status_reason"] else ""
    pairs = [
        ("webhook", webhook["id"]),
        ("url", webhook["url"]),
        ("agent", _agent(webhook)),
        ("events", _events(webhook)),
        ("description", webhook["description"]),
        ("owner", webhook["owner"]),
        ("status", f"{webhook['status']}{reason} since {local_time(webhook['status_changed_at'])}"),
        ("ended", "its agent is deleted" if webhook["ended"] else None),
        ("failing since", _time(webhook["failing_since"])),
        ("waiting", _waiting(webhook)),
        ("missed", f"{webhook['missed']} events" if webhook["missed"] else None),
        ("created", f"{local_time(webhook['created_at'])} by {webhook['created_by']}"),
        ("rotated", _time(webhook["rotated_at"])),
    ]
    context.output.item(webhook, webhook["id"], details(pairs))


def _agent(webhook: dict[str, Any]) -> str:
    return webhook["agent_name"] or "all"


def _events(webhook: dict[str, Any]) -> str:
    return "all" if webhook["event_types"] is None else " ".join(webhook["event_types"])


def _time(text: str | None) -> str | None:
    return local_time(text) if text else None


def _waiting(webhook: dict[str, Any]) -> str:
    count = webhook["waiting_agents"]
    if not count:
        return "nothing"
    agents = "1 agent" if count == 1 else f"{count} agents"
    return f"{agents}, {age(webhook['waiting_since'])}" if webhook["waiting_since"] else agents


def _cells(webhook: dict[str, Any]) -> list[str]:
    return [
        webhook["id"],
        "ended" if webhook["ended"] else webhook["status"],
        _agent(webhook),
        _events(webhook),
        _waiting(webhook),
        str(webhook["missed"]),
        webhook["url"],
    ]


def _delivery_cells(delivery: dict[str, Any]) -> list[str]:
    status = "" if delivery["status"] is None else f"{delivery['status']} "
    return [
        str(delivery["id"]),
        short_time(delivery["at"]),
        delivery["agent_name"],
        delivery["event_type"],
        str(delivery["sequence"]),
        str(delivery["attempt"]),
        delivery["outcome"],
        f"{status}{delivery['detail']}".strip() or "-",
    ]
