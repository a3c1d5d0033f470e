"""`podium database-roles`: print or apply the roles of PostgreSQL for migrating and for running Podium."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from podium.cli.command import CommandContext, command
from podium.cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from services.storage.roles import Roles

# Names that need no quotation marks in SQL.
NAME = r"[a-z_][a-z0-9_]{0,62}"


@command
async def database_roles(
    context: CommandContext,
    *,
    migrate_role: Annotated[
        str, typer.Option(metavar="NAME", help="Role that owns the tables and runs 'podium migrate'.")
    ] = "podium_migrate",
    run_role: Annotated[str, typer.Option(metavar="NAME", help="Role of the API and the workers.")] = "podium_run",
    schema: Annotated[str, typer.Option(metavar="NAME", help="Schema of Podium's tables.")] = "public",
    apply: Annotated[
        bool, typer.Option("--apply", help="Execute the statements on PODIUM_DATABASE_URL, as its user.")
    ] = False,
) -> None:
    """Print the SQL that makes a role to migrate and a role to run Podium; with --apply, execute it.

    The second one can change neither the schema nor rows of the ledger and the audit log. It is safe to execute again.
    """
    from services.storage.roles import Roles, statements  # noqa: PLC0415 - --help starts faster without it

    for option, name in (("--migrate-role", migrate_role), ("--run-role", run_role), ("--schema", schema)):
        if not re.fullmatch(NAME, name):
            raise typer.BadParameter("use lower-case letters, digits and '_'.", param_hint=option)
    if migrate_role == run_role:
        raise typer.BadParameter("must be another role than --migrate-role.", param_hint="--run-role")
    roles = Roles(migrate_role, run_role, schema)
    if apply:
        await _apply(context, roles)
    elif context.output.as_json:
        context.output.json(statements(roles))
    else:
        typer.echo(";\n".join(["BEGIN", *statements(roles), "COMMIT"]) + ";")


async def _apply(context: CommandContext, roles: "Roles") -> None:
    """Execute the statements in one transaction, and check what the role that runs Podium may do then."""
    from sqlalchemy import text  # noqa: PLC0415 - --help starts faster without it
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - as above

    from podium.cli.doctor.checks import first_line  # noqa: PLC0415 - as above
    from services.settings import Settings  # noqa: PLC0415 - as above
    from services.storage.database import close_engine, make_engine  # noqa: PLC0415 - as above
    from services.storage.roles import excess, statements  # noqa: PLC0415 - as above

    url, ca_file = (context.environment.get(f"PODIUM_DATABASE_{name}", "") for name in ("URL", "CA_FILE"))
    if not url:
        raise Failure("PODIUM_DATABASE_URL is not set: set it to the address of an administrator.", ExitCode.USAGE)
    settings = Settings.model_validate({"database_url": url, "database_ca_file": ca_file})
    engine = make_engine(settings, application_name="podium-database-roles", pool_size=1)
    try:
        async with engine.begin() as connection:
            for statement in statements(roles):
                await connection.execute(text(statement))
            too_much = await excess(connection, roles)
            if too_much:
                raise Failure(
                    f"{roles.run} may do more than it should, so nothing was changed: {', '.join(too_much)}. "
                    "Is it a superuser, or a member of another role?",
                    ExitCode.CONFLICT,
                )
    except (SQLAlchemyError, OSError) as error:
        raise Failure(f"The roles could not be made: {first_line(getattr(error, 'orig', None) or error)}.") from error
    finally:
        await close_engine(engine)
    result = {"migrate_role": roles.migrate, "run_role": roles.run, "schema": roles.schema}
    context.output.item(result, roles.run, f"{roles.migrate} owns the tables, {roles.run} runs Podium.")
    context.output.note(
        f"New roles have no password: set it by '\\password {roles.run}' and '\\password {roles.migrate}' in psql."
    )
