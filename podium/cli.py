"""The command line."""

from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console

from podium import logs
from podium.servers import Purpose, ServersError, ensure_servers
from services.errors import PodiumError
from services.settings import Settings
from workers.run import WorkerName, run_workers

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

DEFAULT_DATA_DIR = Path(".podium")

app = typer.Typer(
    name="podium",
    help="The control plane for versioned deployments of AI agents.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

DataDir = Annotated[Path, typer.Option(help="Where all state is kept.")]
Version = Annotated[bool, typer.Option("--version", help="Say which version this is.")]
Port = Annotated[int | None, typer.Option(help="Port of the API. Default: PODIUM_PORT, else 8080.", min=1, max=65535)]


def main() -> None:
    """Run the command line; whatever goes wrong is one sentence and an exit code."""
    try:
        app()
    except ServersError as error:
        _fail(str(error), error.exit_code)
    except PodiumError as error:
        _fail(error.message, EXIT_FAILED)
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        _fail(f"PODIUM_{'_'.join(map(str, problem['loc'])).upper()} is not valid: {problem['msg']}.", EXIT_USAGE)


@app.callback(invoke_without_command=True)
def podium(
    *, show_version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False
) -> None:
    """The control plane for versioned deployments of AI agents."""
    if show_version:
        typer.echo(f"podium {version('podium')}")
        raise typer.Exit


@app.command()
def up(data_dir: DataDir = DEFAULT_DATA_DIR, port: Port = None) -> None:
    """Run everything on this machine until Ctrl-C: PostgreSQL, RabbitMQ, workers and API."""
    from podium.up import up as run_up  # noqa: PLC0415 - other commands start faster without it

    ensure_servers(Purpose.RUN, typer.echo)
    _run(run_up(_with_port(Settings(), port), data_dir, typer.echo))


@app.command()
def demo() -> None:
    """Start the whole system with sample agents, show what it does, and end."""
    from podium.demo import demo as run_demo  # noqa: PLC0415 - other commands start faster without it

    ensure_servers(Purpose.RUN, typer.echo)
    _run(run_demo(Settings(), typer.echo))


@app.command()
def migrate() -> None:
    """Bring the database's schema and the broker's queues to what this version needs."""
    from podium.migration import migrate_all  # noqa: PLC0415 - other commands start faster without it

    settings = _settings("database_url", "amqp_url")
    _run(migrate_all(settings, typer.echo))


@app.command()
def api(port: Port = None) -> None:
    """Serve the HTTP API, configured by PODIUM_* variables."""
    from api.app import serve  # noqa: PLC0415 - other commands start faster without it
    from api.auth import StartRefused  # noqa: PLC0415 - as above

    settings = _with_port(_settings("database_url", "secret_key"), port)
    try:
        _run(serve(settings))
    except StartRefused as error:
        _fail(str(error), EXIT_USAGE)


@app.command()
def worker(
    names: Annotated[
        list[WorkerName] | None, typer.Argument(help="Which workers to run; all of them if not named.")
    ] = None,
) -> None:
    """Run workers in this process, configured by PODIUM_* variables; several processes side by side are safe."""
    _run(run_workers(_settings("database_url", "amqp_url"), names or WorkerName))


def _settings(*required: str) -> Settings:
    """The settings of the environment; ends the program if one of these is not set."""
    settings = Settings()
    logs.configure(settings)
    for name in required:
        if not getattr(settings, name).get_secret_value():
            meaning = Settings.model_fields[name].description
            hint = "'podium up' writes what it uses to .podium/podium.env."
            _fail(f"PODIUM_{name.upper()} is not set ({meaning}); {hint}", EXIT_USAGE)
    return settings


def _with_port(settings: Settings, port: int | None) -> Settings:
    return settings if port is None else settings.model_copy(update={"port": port})


def _run(work: Coroutine[Any, Any, None]) -> None:
    uvloop.run(work)


def _fail(sentence: str, code: int) -> None:
    errors.print(f"podium: {sentence}", markup=False)
    raise SystemExit(code)
