"""What all commands have in common: how they find the API, how they answer, and how an async function becomes one."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from podium.cli.addresses import api_key, api_url, environment

if TYPE_CHECKING:
    from podium.cli.client import Api
    from podium.cli.screen import Screen

P = ParamSpec("P")

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Its name or id.", show_default=False)]
DeploymentArgument = Annotated[str, typer.Argument(metavar="ID", help="The deployment's id.", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Rows, at most.")]
Page = Annotated[int, typer.Option(min=1, help="Which page of so many rows.")]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why; the ledger keeps it.")]
IfGeneration = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Only if the agent is still at this generation.")
]


@dataclass(frozen=True)
class Call:
    """One call of a command: whom it asks, and where its answer goes."""

    api: "Api"
    screen: "Screen"
    environment: dict[str, str]


def _shared(
    *,
    api_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Default: PODIUM_API_URL, else .podium/podium.env.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Default: PODIUM_API_KEY, else .podium/podium.env.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Answer as JSON, for programs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Answer with ids alone, one per line.")] = False,
) -> None:
    """Options of every command; this function is their list."""


def command(work: Callable[Concatenate[Call, P], Awaitable[None]]) -> Callable[..., None]:
    """An async function as a Typer command, with the shared options behind its own."""

    def run(**given: Any) -> None:  # noqa: ANN401 - what Typer has read
        shared = {name: given.pop(name) for name in shared_parameters}
        asyncio.run(_run(work, shared, given))

    own = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
    shared_parameters = inspect.signature(_shared, eval_str=True).parameters
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared_parameters.values())
    ]
    run.__name__ = work.__name__
    run.__doc__ = work.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks for
    return run


async def _run(work: Callable[..., Awaitable[None]], shared: dict[str, Any], given: dict[str, Any]) -> None:
    from podium.cli.client import open_api  # noqa: PLC0415 - completion and --help start faster without it
    from podium.cli.screen import Screen  # noqa: PLC0415 - as above

    # What libraries have to say is said by the commands themselves, in a sentence.
    logging.getLogger().addHandler(logging.NullHandler())
    found = environment()
    screen = Screen(as_json=shared["json"], quiet=shared["quiet"])
    url = api_url(shared["api_url"], found)
    async with open_api(url, api_key(shared["api_key"], url)) as api:
        await work(Call(api, screen, found), **given)
