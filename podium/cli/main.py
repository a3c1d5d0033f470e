"""The entry point of the command line, and the commands that run Podium itself."""

import gc
import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from podium.cli.agents import agents
from podium.cli.audit import audit
from podium.cli.broker_policy import broker_policy
from podium.cli.calls import calls
from podium.cli.console import open_console
from podium.cli.database_roles import database_roles
from podium.cli.deployments import deployments
from podium.cli.doctor.command import doctor
from podium.cli.drain import drain
from podium.cli.events import events
from podium.cli.exits import ExitCode, Failure, epilog
from podium.cli.history import history
from podium.cli.keys import keys
from podium.cli.parked import parked
from podium.cli.promotions import promote, rollback
from podium.cli.register import deregister, register
from podium.cli.registrations import registrations
from podium.cli.rpc import rpc
from podium.cli.webhooks import webhooks
from podium.printable import plain, plain_lines
from podium.servers import Purpose, ServersError, ensure_servers
from services.errors import PodiumError

if TYPE_CHECKING:
    from services.settings import Settings

DEFAULT_DATA_DIR = Path(".podium")
# New objects that start a garbage collection; Python's default is 700. Collections while a command imports its modules
# find nothing, and take a fifth of the start of an API or a worker.
GC_ALLOCATIONS = 20_000
# The order of `podium --help`; commands that are not listed here come last.
ORDER = [
    "up",
    "demo",
    "doctor",
    "open",
    "agents",
    "deployments",
    "promote",
    "rollback",
    "drain",
    "history",
    "calls",
    "events",
    "webhooks",
    "registrations",
    "parked",
    "rpc",
    "register",
    "deregister",
    "keys",
    "audit",
    "broker-policy",
    "database-roles",
]


class OrderedGroup(TyperGroup):
    """Lists the commands in `ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - Typer does not export this type
        """The names of all commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="podium",
    cls=OrderedGroup,
    help="The control plane for versioned deployments of AI agents.",
    epilog=epilog(),
    invoke_without_command=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)

DataDir = Annotated[Path, typer.Option(help="Directory for all state.")]
Port = Annotated[int | None, typer.Option(help="Port of the API. Default: PODIUM_PORT, else 8080.", min=1, max=65535)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the default arguments are those of the process. Always raises `SystemExit`.

    A failure prints one sentence on stderr.
    """
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        code = app(arguments, prog_name="podium", standalone_mode=False)
    except typer.TyperException as error:
        _fail(_usage(error), ExitCode.USAGE)
    except typer.Abort:
        _fail("Interrupted.", ExitCode.INTERRUPTED)
    except Failure as failure:
        _fail(plain(failure.message), failure.code)
    except ServersError as error:
        _fail(str(error), error.exit_code)
    except PodiumError as error:
        _fail(error.message, ExitCode.FAILED)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        from services.settings import variable_of  # noqa: PLC0415 - other commands start faster without it

        variable = variable_of("_".join(map(str, problem["loc"])))
        _fail(f"{variable} is not valid: {problem['msg']}.", ExitCode.USAGE)
    raise SystemExit(code if isinstance(code, int) else ExitCode.DONE)


@app.callback()
def podium(
    context: typer.Context,
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """The control plane for versioned deployments of AI agents."""
    if show_version:
        typer.echo(f"podium {version('podium')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    port: Port = None,
    *,
    demo: Annotated[bool, typer.Option("--demo", help="Add a sample agent with two versions.")] = False,
) -> None:
    """Run the whole system on this machine until Ctrl-C.

    Starts PostgreSQL, RabbitMQ, the workers and the API.
    """
    from podium.local.up import up as run_up  # noqa: PLC0415 - other commands start faster without it

    ensure_servers(Purpose.RUN, typer.echo)
    _run(run_up(_with_port(_settings(), port), data_dir, typer.echo, with_demo=demo))


@app.command()
def demo() -> None:
    """Demonstrate Podium with sample agents.

    Runs the whole system for some seconds, in a directory that is removed afterwards.
    """
    from podium.local.demo import demo as run_demo  # noqa: PLC0415 - other commands start faster without it

    ensure_servers(Purpose.RUN, typer.echo)
    _run(run_demo(_settings(), typer.echo))


@app.command()
def migrate() -> None:
    """Prepare the database and the broker for this version.

    Migrates the schema, and declares exchanges and queues. Does nothing if they are current.
    """
    from podium.migration import migrate_all  # noqa: PLC0415 - other commands start faster without it

    _run(migrate_all(_required("database_url", "amqp_url"), typer.echo))


@app.command()
def api(port: Port = None) -> None:
    """Serve the HTTP API, configured by PODIUM_* variables."""
    # First: a wrong setting is said at once, not after the imports.
    settings = _with_port(_required("database_url", "secret_key"), port)
    from api.app import serve  # noqa: PLC0415 - other commands start faster without it
    from api.auth.binding import StartRefused  # noqa: PLC0415 - as above

    try:
        _run(serve(settings))
    except StartRefused as error:
        _fail(str(error), ExitCode.USAGE)


@app.command()
def worker(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Workers to run. Default: all.")] = None,
) -> None:
    """Run workers, configured by PODIUM_* variables.

    You can run several processes at the same time.
    """
    from workers.registrar.consumer import StartRefused  # noqa: PLC0415 - other commands start faster without it
    from workers.runner import WorkerName, run_workers  # noqa: PLC0415 - as above

    unknown = set(names or ()) - set(WorkerName)
    if unknown:
        known = ", ".join(WorkerName)
        raise typer.BadParameter(
            f"there is no worker {', '.join(sorted(unknown))}: choose from {known}.", param_hint="NAME"
        )
    selected = [WorkerName(name) for name in names or WorkerName]
    settings = _required("database_url", "amqp_url")
    try:
        _run(run_workers(settings, selected))
    except StartRefused as error:
        _fail(str(error), ExitCode.USAGE)


for group in (agents, deployments, parked, keys, webhooks):
    app.add_typer(group)
for operator_command in (
    registrations,
    promote,
    rollback,
    drain,
    history,
    calls,
    events,
    rpc,
    register,
    deregister,
    audit,
    doctor,
    broker_policy,
    database_roles,
):
    app.command()(operator_command)
app.command("open")(open_console)


def _settings() -> "Settings":
    from services.settings import Settings  # noqa: PLC0415 - other commands start faster without it

    return Settings()


def _required(*names: str) -> "Settings":
    """The settings from the environment. Ends the program if one of these settings is missing."""
    from podium import logs  # noqa: PLC0415 - other commands start faster without it

    settings = _settings()
    logs.configure(settings)
    for name in names:
        if not getattr(settings, name).get_secret_value():
            meaning = type(settings).model_fields[name].description
            hint = "'podium up' writes its own settings to .podium/podium.env."
            _fail(f"PODIUM_{name.upper()} is not set ({meaning}); {hint}", ExitCode.USAGE)
    return settings


def _with_port(settings: "Settings", port: int | None) -> "Settings":
    return settings if port is None else settings.model_copy(update={"port": port})


def _run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop  # noqa: PLC0415 - other commands start faster without it

    # Modules live as long as the process, so the collector can ignore them. That, and fewer collections, saves a sixth
    # of a registrar's CPU time.
    gc.freeze()
    uvloop.run(work)


def _usage(error: typer.TyperException) -> str:
    """The error on one line, with the command that prints the right usage."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "podium"
    return f"{' '.join(error.format_message().split())} See '{path} --help'."


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"podium: {plain_lines(message)}\n")
    raise SystemExit(code)
