"""`podium broker-policy`: print or apply the users of RabbitMQ and their permissions."""

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from podium.cli.command import CommandContext, command
from podium.cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from podium.access.broker import User

AUTH = "PODIUM_MANAGEMENT_AUTH"


@command
async def broker_policy(
    context: CommandContext,
    *,
    agent: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Make a user for the pods of this agent; repeatable.")
    ] = None,
    consumer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Make a user for this consumer of events; repeatable.")
    ] = None,
    vhost: Annotated[
        str | None, typer.Option(metavar="NAME", help="Virtual host. Default: that of PODIUM_AMQP_URL, else /.")
    ] = None,
    apply: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Apply it through the management API there, as the user of {AUTH} (USER:PASSWORD).",
        ),
    ] = None,
) -> None:
    """Print the users of RabbitMQ and their permissions, as a shell script of rabbitmqctl; with --apply, make them.

    Each user may do what its program needs and nothing else. Applying again changes no password.
    """
    from podium.access.broker import BadName, commands, policy  # noqa: PLC0415 - --help starts faster without it

    try:
        users = policy(dict.fromkeys(agent or ()), dict.fromkeys(consumer or ()))
    except BadName as error:
        raise Failure(str(error), ExitCode.USAGE) from None
    place = vhost or _vhost_of(context.environment.get("PODIUM_AMQP_URL", ""))
    if "'" in place:
        raise Failure("The name of a virtual host cannot contain a quotation mark here.", ExitCode.USAGE)
    if apply is not None:
        await _apply(context, users, place, apply)
    elif context.output.as_json:
        context.output.json([_as_json(user, place) for user in users])
    else:
        for line in commands(users, place):
            typer.echo(line)


async def _apply(context: CommandContext, users: "list[User]", vhost: str, url: str) -> None:
    """Apply the policy, and print each new user's password, which nothing else stores."""
    import aiohttp  # noqa: PLC0415 - --help starts faster without it

    from podium.access.management import ManagementFailed, management  # noqa: PLC0415 - as above

    name, colon, password = context.environment.get(AUTH, "").partition(":")
    if not colon:
        raise Failure(f"{AUTH} is not set: set it to USER:PASSWORD of an administrator of RabbitMQ.", ExitCode.USAGE)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise Failure(
            f"--apply takes an address such as http://rabbitmq:15672, without a user: set {AUTH}.", ExitCode.USAGE
        )
    rows = []
    auth = aiohttp.encode_basic_auth(name, password, encoding="utf-8")
    try:
        async with management(url, auth, context.environment.get("PODIUM_AMQP_CA_FILE", "")) as api:
            async for applied in api.apply(users, vhost):
                rows.append({**_as_json(applied.user, vhost), "password": applied.password})
                if not context.output.as_json:
                    made = f"made, password {applied.password}" if applied.password else "kept its password"
                    typer.echo(f"{applied.user.name}: {made}; it {applied.user.purpose}")
    except ManagementFailed as error:
        raise Failure(str(error), ExitCode.UNAVAILABLE) from error
    finally:
        if context.output.as_json:
            context.output.json(rows)


def _as_json(user: "User", vhost: str) -> dict[str, Any]:
    rights = user.permissions
    return {
        "user": user.name,
        "purpose": user.purpose,
        "vhost": vhost,
        "configure": rights.configure,
        "write": rights.write,
        "read": rights.read,
        "routing_keys": user.keys,
    }


def _vhost_of(amqp_url: str) -> str:
    """The virtual host of a URL: the default one for an empty path, as AMQP clients read it."""
    return unquote(urlsplit(amqp_url).path.removeprefix("/")) or "/"
