"""What commands share: the decorator that makes an async function a command, shared options, the API's address."""

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from podium.cli.client import Api
    from podium.cli.output import Output

P = ParamSpec("P")

DEFAULT_API_URL = "http://127.0.0.1:8080"
ENV_FILE = Path(".podium") / "podium.env"
LIST = "list"

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Name or id of the agent.", show_default=False)]
DeploymentArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the deployment.", show_default=False)]
AgentFilter = Annotated[str | None, typer.Argument(metavar="AGENT", help="The same as --agent.", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of rows.")]
Page = Annotated[int, typer.Option(min=1, help="Number of the page; a page has --limit rows.")]


@dataclass(frozen=True)
class CommandContext:
    """What a running command gets: the API, the output, and the PODIUM_* variables."""

    api: "Api"
    output: "Output"
    environment: dict[str, str]


class ListByDefault(TyperGroup):
    """A group that runs `list` if no command is named: `podium deployments bot` is `podium deployments list bot`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer does not export this type
        """Insert `list` unless the first argument names a command."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = [LIST, *args]
        return super().parse_args(ctx, args)


def print_help_without_command(context: typer.Context) -> None:
    """Print the help of a group if no command is named, with exit code 0. For `Typer.callback`."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def one_agent(argument: str | None, option: str | None) -> str | None:
    """The agent that AGENT or --agent names. Raises `typer.BadParameter` if they name different ones."""
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter("name one agent.", param_hint="--agent")
    return option or argument


def command(function: Callable[Concatenate[CommandContext, P], Awaitable[None]]) -> Callable[..., None]:
    """Make an async function a Typer command; the shared options follow its own options."""

    def run(**arguments: Any) -> None:  # noqa: ANN401 - parsed by Typer
        shared = {name: arguments.pop(name) for name in shared_parameters}
        asyncio.run(_run(function, shared, arguments))

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared_parameters = inspect.signature(_shared_options, eval_str=True).parameters
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared_parameters.values())
    ]
    run.__name__ = function.__name__
    run.__doc__ = function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it through inspect
    return run


def environment(environ: Mapping[str, str] = os.environ, env_file: Path = ENV_FILE) -> dict[str, str]:
    """Every PODIUM_* variable: those of the process first, then those of the file that `podium up` writes."""
    own = {name: value for name, value in environ.items() if name.startswith("PODIUM_") and value}
    return {**_read_env_file(env_file), **own}


def api_url(option: str | None, variables: Mapping[str, str]) -> str:
    """The address of the API: the option, else PODIUM_API_URL, else this machine. Without a slash at the end."""
    return (option or variables.get("PODIUM_API_URL") or DEFAULT_API_URL).rstrip("/")


def api_key(
    option: str | None, url: str, environ: Mapping[str, str] = os.environ, env_file: Path = ENV_FILE
) -> str | None:
    """The key for the API at this URL. The key in the file of `podium up` is used only for the API of `podium up`."""
    from_file = _read_env_file(env_file)
    key_in_file = from_file.get("PODIUM_API_KEY") if url == api_url(None, from_file) else None
    return option or environ.get("PODIUM_API_KEY") or key_in_file or None


def _shared_options(
    *,
    api_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Address of the API. Default: PODIUM_API_URL, else .podium/podium.env."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key for the API. Default: PODIUM_API_KEY, else .podium/podium.env."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only ids or names, one per line.")] = False,
) -> None:
    """Declare the options of every command; `command` reads the signature."""


async def _run(function: Callable[..., Awaitable[None]], shared: dict[str, Any], arguments: dict[str, Any]) -> None:
    from podium.cli.client import open_api  # noqa: PLC0415 - completion and --help start faster without it
    from podium.cli.output import Output  # noqa: PLC0415 - as above

    # The commands report failures themselves. Without a handler, Python prints the libraries' warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
    variables = environment()
    output = Output(as_json=shared["json"], quiet=shared["quiet"])
    url = api_url(shared["api_url"], variables)
    async with open_api(url, api_key(shared["api_key"], url)) as api:
        await function(CommandContext(api, output, variables), **arguments)


def _read_env_file(env_file: Path) -> dict[str, str]:
    """The lines PODIUM_NAME=value of the file; empty if the file does not exist or cannot be read."""
    try:
        lines = env_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in lines if line.startswith("PODIUM_"))
    return {name: value for name, _, value in pairs if value}
