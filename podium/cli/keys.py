"""`podium keys`: create, list, rotate and revoke API keys."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from podium.cli.command import LIST, CommandContext, Limit, Page, command, print_help_without_command
from podium.cli.durations import format_duration, parse_duration
from podium.cli.exits import ExitCode, Failure
from podium.cli.output import Column, details, local_time, short_time
from podium.printable import plain

COLUMNS = [
    Column("KEY", min_width=12, wraps=True),
    Column("SCOPES", wraps=True),
    Column("AGENTS", min_width=8, wraps=True, drop_order=1),
    Column("ENDS WITH", drop_order=4),
    Column("OWNER", min_width=8, wraps=True, drop_order=3),
    Column("LAST USED", drop_order=2),
    Column("EXPIRES", drop_order=2),
]
# The largest page of the API.
MOST_KEYS = 1000


class ScopeName(StrEnum):
    """What a key may do."""

    READ = "read"
    REGISTER = "register"
    INVOKE = "invoke"
    PROMOTE = "promote"
    ADMIN = "admin"


KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Name or id of the key.", show_default=False)]

keys = typer.Typer(
    name="keys",
    help="Create, list, rotate and revoke API keys.",
    invoke_without_command=True,
    subcommand_metavar="list | create NAME | rotate KEY | revoke KEY",
)
keys.callback()(print_help_without_command)


@keys.command(LIST)
@command
async def list_keys(
    context: CommandContext,
    *,
    revoked: Annotated[bool, typer.Option("--revoked", help="Also show revoked keys.")] = False,
    limit: Limit = 50,
    page: Page = 1,
) -> None:
    """List API keys by name."""
    async with context.output.progress("Reading the keys"):
        rows = await context.api.get("/keys", limit=limit, page_number=page, revoked=str(revoked).lower())
    context.output.rows(rows, [row["name"] for row in rows], COLUMNS, [_cells(row) for row in rows])
    if not rows and page == 1:
        context.output.note("There are no keys: 'podium keys create' makes one.")
    context.output.note_next_page(rows, limit, page)


@keys.command()
@command
async def create(
    context: CommandContext,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the key, such as ci-deploy.", show_default=False)
    ],
    *,
    scope: Annotated[
        list[ScopeName],
        typer.Option(help="What the key may do; repeat it for more. 'admin' includes the others."),
    ],
    agent: Annotated[
        list[str] | None,
        typer.Option(metavar="AGENT", help="Only this agent, or a prefix such as 'team-*'; repeat it for more."),
    ] = None,
    owner: Annotated[str | None, typer.Option(metavar="TEXT", help="Whom to ask about the key.")] = None,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="How long the key is valid, such as 90d."),
    ] = None,
    calls_per_second: Annotated[
        float | None, typer.Option(metavar="N", help="Most RPC calls per second and API process.")
    ] = None,
    calls_in_flight: Annotated[
        int | None, typer.Option(metavar="N", help="Most RPC calls under way per API process.")
    ] = None,
    bootstrap: Annotated[
        bool,
        typer.Option(
            "--bootstrap", help="Write the key to the database at PODIUM_DATABASE_URL instead of asking the API."
        ),
    ] = False,
) -> None:
    """Create an API key and print its secret, which cannot be read again.

    The first key of an installation is made with --bootstrap on a machine that reaches the database.
    """
    body: dict[str, Any] = {
        "name": name,
        "scopes": list(scope),
        "agents": agent or None,
        "owner": owner,
        "expires_in_seconds": None if expires is None else expires.total_seconds(),
        "calls_per_second": calls_per_second,
        "calls_in_flight": calls_in_flight,
    }
    async with context.output.progress("Creating the key"):
        if bootstrap:
            from podium.first_key import create_in_database  # noqa: PLC0415 - --help starts faster without it

            issued = await create_in_database(body, context.environment)
        else:
            issued = (await context.api.call("POST", "/keys", json=body)).body
    _show_secret(context, issued)


@keys.command()
@command
async def rotate(
    context: CommandContext,
    key: KeyArgument,
    overlap: Annotated[
        timedelta,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="How long the secret before the new one stays valid."
        ),
    ] = "0s",  # type: ignore[assignment]  # Typer parses it
) -> None:
    """Give a key a new secret and print it. It cannot be read again."""
    async with context.output.progress("Rotating the key"):
        found = await _key(context, key)
        body = {"overlap_seconds": overlap.total_seconds()}
        issued = (await context.api.call("POST", f"/keys/{found['id']}/rotate", json=body)).body
    _show_secret(context, issued)
    if overlap:
        context.output.note(f"The secret before it is valid for {format_duration(overlap)}.")


@keys.command()
@command
async def revoke(context: CommandContext, key: KeyArgument) -> None:
    """Revoke a key: every request with it is refused from now on. This cannot be undone."""
    async with context.output.progress("Revoking the key"):
        found = await _key(context, key)
        response = await context.api.call("DELETE", f"/keys/{found['id']}")
    context.output.item(response.body, found["name"], response.body["message"])


async def _key(context: CommandContext, name_or_id: str) -> dict[str, Any]:
    """The key with this name or id that is not revoked."""
    page = 1
    while True:
        found: list[dict[str, Any]] = await context.api.get("/keys", limit=MOST_KEYS, page_number=page)
        for key in found:
            if name_or_id in {key["name"], key["id"]}:
                return key
        if len(found) < MOST_KEYS:
            message = f"There is no key {plain(name_or_id)!r}: 'podium keys list' shows the names of all keys."
            raise Failure(message, ExitCode.NOT_FOUND)
        page += 1


def _show_secret(context: CommandContext, issued: dict[str, Any]) -> None:
    pairs = [
        ("key", issued["name"]),
        ("secret", issued["secret"]),
        ("scopes", " ".join(issued["scopes"])),
        ("agents", _agents(issued)),
        ("expires", local_time(issued["expires_at"]) if issued["expires_at"] else "never"),
    ]
    context.output.item(issued, issued["secret"], details(pairs))
    context.output.note("Store the secret now: it cannot be read again.")


def _agents(key: dict[str, Any]) -> str:
    return "all" if key["agents"] is None else " ".join(key["agents"])


def _cells(key: dict[str, Any]) -> list[str]:
    end = f"revoked {short_time(key['revoked_at'])}" if key["revoked_at"] else None
    return [
        key["name"],
        " ".join(key["scopes"]),
        _agents(key),
        f"…{key['hint']}",
        key["owner"] or "-",
        short_time(key["last_used_at"]) if key["last_used_at"] else "never",
        end or (short_time(key["expires_at"]) if key["expires_at"] else "never"),
    ]
