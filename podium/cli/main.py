"""The command line."""

import gc
import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from podium.cli import InOrder, operator_commands
from podium.cli.exits import ExitCode, Failure, epilog
from podium.cli.plain import plain
from podium.servers import Purpose, ServersError, ensure_servers
from services.errors import PodiumError

if TYPE_CHECKING:
    from services.settings import Settings

DEFAULT_DATA_DIR = Path(".podium")
# Objects made before the collector looks at the new ones; Python begins with 700.
GC_ALLOCATIONS = 20_000

app = typer.Typer(
    name="podium",
    cls=InOrder,
    help="The control plane for versioned deployments of AI agents.",
    epilog=epilog(),
    invoke_without_command=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)

DataDir = Annotated[Path, typer.Option(help="Where all state is kept.")]
Port = Annotated[int | None, typer.Option(help="Port of the API. Default: PODIUM_PORT, else 8080.", min=1, max=65535)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, with the arguments of the process by default; raises `SystemExit` in any case.

    Whatever goes wrong is one sentence and an exit code.
    """
    try:
        code = app(arguments, prog_name="podium", standalone_mode=False)
    except typer.TyperException as error:
        _fail(_usage(error), ExitCode.USAGE)
    except typer.Abort:
        _fail("Interrupted.", ExitCode.INTERRUPTED)
    except Failure as failure:
        _fail(plain(failure.sentence), failure.code)
    except ServersError as error:
        _fail(str(error), error.exit_code)
    except PodiumError as error:
        _fail(error.message, ExitCode.FAILED)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        from services.settings import variable_of  # noqa: PLC0415 - commands that ask the API start faster without it

        variable = variable_of("_".join(map(str, problem["loc"])))
        _fail(f"{variable} is not valid: {problem['msg']}.", ExitCode.USAGE)
    raise SystemExit(code if isinstance(code, int) else ExitCode.DONE)


@app.callback()
def podium(
    context: typer.Context,
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
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
    demo: Annotated[bool, typer.Option("--demo", help="Add a sample agent: two versions, each with a pod.")] = False,
) -> None:
    """Run everything on this machine until Ctrl-C.

    That is PostgreSQL, RabbitMQ, the workers and the API.
    """
    from podium.local.up import up as run_up  # noqa: PLC0415 - other commands start faster without it

    ensure_servers(Purpose.RUN, typer.echo)
    _run(run_up(_with_port(_settings(), port), data_dir, typer.echo, with_demo=demo))


@app.command()
def demo() -> None:
    """Show what it does: the whole system with sample agents."""
    from podium.local.demo import demo as run_demo  # noqa: PLC0415 - other commands start faster without it

    ensure_servers(Purpose.RUN, typer.echo)
    _run(run_demo(_settings(), typer.echo))


@app.command()
def migrate() -> None:
    """Bring database and broker to what this version needs."""
    from podium.migration import migrate_all  # noqa: PLC0415 - other commands start faster without it

    _run(migrate_all(_required("database_url", "amqp_url"), typer.echo))


@app.command()
def api(port: Port = None) -> None:
    """Serve the HTTP API, configured by PODIUM_* variables."""
    from api.app import serve  # noqa: PLC0415 - other commands start faster without it
    from api.auth import StartRefused  # noqa: PLC0415 - as above

    settings = _with_port(_required("database_url", "secret_key"), port)
    try:
        _run(serve(settings))
    except StartRefused as error:
        _fail(str(error), ExitCode.USAGE)


@app.command()
def worker(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which workers to run; all of them if not named.")
    ] = None,
) -> None:
    """Run workers, configured by PODIUM_* variables.

    Several processes side by side are safe.
    """
    from workers.runner import WorkerName, run_workers  # noqa: PLC0415 - other commands start faster without it

    unknown = set(names or ()) - set(WorkerName)
    if unknown:
        known = ", ".join(WorkerName)
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: the workers are {known}.", param_hint="NAME")
    wanted = [WorkerName(name) for name in names or WorkerName]
    _run(run_workers(_required("database_url", "amqp_url"), wanted))


operator_commands(app)


def _settings() -> "Settings":
    from services.settings import Settings  # noqa: PLC0415 - commands that ask the API start faster without it

    return Settings()


def _required(*names: str) -> "Settings":
    """The settings of the environment; ends the program if one of these is not set."""
    from podium import logs  # noqa: PLC0415 - commands that ask the API start faster without it

    settings = _settings()
    logs.configure(settings)
    for name in names:
        if not getattr(settings, name).get_secret_value():
            meaning = type(settings).model_fields[name].description
            hint = "'podium up' writes what it uses to .podium/podium.env."
            _fail(f"PODIUM_{name.upper()} is not set ({meaning}); {hint}", ExitCode.USAGE)
    return settings


def _with_port(settings: "Settings", port: int | None) -> "Settings":
    return settings if port is None else settings.model_copy(update={"port": port})


def _run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop  # noqa: PLC0415 - commands that ask the API start faster without it

    # Modules stay for as long as the process does. Not to go through them again and again, nor so often through what
    # a batch leaves behind, saves a sixth of a registrar's time.
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
    uvloop.run(work)


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the call, on one line, and where to read how it is right."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "podium"
    return f"{' '.join(error.format_message().split())} See '{path} --help'."


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"podium: {sentence}\n")
    raise SystemExit(code)
