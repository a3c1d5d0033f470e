"""`podium rpc`: one JSON-RPC call to what serves an agent, or to one deployment; the answer comes as it is sent."""

import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podium.cli.calling import AgentArgument, Call, command
from podium.cli.exits import ExitCode, Failure, code_of_status

if TYPE_CHECKING:
    from aiohttp import ClientResponse

STDIN = "-"
HEADERS = {
    "content-type": "application/json",
    # All that agents stream: JSON, JSON lines, Server-Sent Events.
    "accept": "application/json, text/event-stream, */*;q=0.5",
}

Method = Annotated[str | None, typer.Argument(metavar="METHOD", help="Such as message/send.", show_default=False)]
Params = Annotated[
    str | None, typer.Argument(metavar="PARAMS", help="JSON, or - to read it from stdin.", show_default=False)
]


@command
async def rpc(
    call: Call,
    agent: AgentArgument,
    method: Method = None,
    params: Params = None,
    *,
    deployment: Annotated[
        str | None, typer.Option(metavar="ID", help="Call this deployment, in production or not.")
    ] = None,
    body: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Send these bytes as they are, instead of METHOD and PARAMS.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Send this header too.")
    ] = None,
) -> None:
    """Call an agent by JSON-RPC; print its answer as it comes.

    An error in the answer is exit code 1.
    """
    content = _content(method, params, body)
    headers = {**HEADERS, **dict(_header(each) for each in header or [])}
    async with call.screen.progress("Asking for the agent"):
        found = await call.api.agent(agent)
    await _call(call, _path(found["id"], deployment), content, headers)


async def _call(call: Call, path: str, content: bytes, headers: dict[str, str]) -> None:
    """Send it and print what comes. Raises `Failure` if that is an error."""
    import aiohttp  # noqa: PLC0415 - --help starts faster without it

    from podium.cli.client import CONNECT_SECONDS, GENERATION_HEADER  # noqa: PLC0415 - as above

    patient = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with AsyncExitStack() as stack:
        async with call.screen.progress("Waiting for the answer"):
            request = call.api.request("POST", path, data=content, headers=headers, timeout=patient)
            response = await stack.enter_async_context(request)
        try:
            error = await _print(response)
        except aiohttp.ClientError:
            raise Failure(
                "The answer broke off before its end; the agent may have done the work, so do not repeat it blindly."
            ) from None
        # Only what came from an agent has a generation; the gateway's own refusals have none.
        _raise_error(response.status, error, forwarded=GENERATION_HEADER in response.headers)


async def _print(response: "ClientResponse") -> str | None:
    """Print the answer chunk by chunk; the message of the JSON-RPC error in it, if there is one."""
    from podium.cli.answers import ErrorWatch  # noqa: PLC0415 - --help starts faster without it
    from podium.cli.printing import Printer  # noqa: PLC0415 - as above

    watch, printer = ErrorWatch(), Printer()
    try:
        async for chunk in response.content.iter_any():
            watch.see(chunk)
            printer.print(chunk)
    finally:
        printer.end()
    return watch.end()


def _raise_error(status: int, error: str | None, *, forwarded: bool) -> None:
    if forwarded and error is not None:
        raise Failure(f"The agent answered with an error: {error}")
    if forwarded and status >= 400:  # noqa: PLR2004 - HTTP: refused or failed
        raise Failure(f"The agent answered HTTP {status}.")
    if not forwarded:
        code = code_of_status(status) if status >= 400 else ExitCode.FAILED  # noqa: PLR2004 - as above
        raise Failure(error or f"The gateway answered HTTP {status}.", code)


def _content(method: str | None, params: str | None, body: str | None) -> bytes:
    """The request's body. Raises `typer.BadParameter`."""
    if body is not None:
        if method is not None:
            raise typer.BadParameter("it is instead of METHOD and PARAMS, not beside them.", param_hint="--body")
        return _read(body)
    if method is None:
        raise typer.BadParameter("name a method, or send a --body.", param_hint="METHOD")
    call = f'{{"jsonrpc":"2.0","id":1,"method":{json.dumps(method)}'
    if params is None:
        return f"{call}}}".encode()
    text = _read(params).decode(errors="replace") if params == STDIN else params
    _check_params(text)
    # As they were written: what Python would make of them may differ in repeated keys.
    return f'{call},"params":{text}}}'.encode()


def _check_params(text: str) -> None:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is no JSON: {error}.", param_hint="PARAMS") from None
    if not isinstance(found, dict | list):
        raise typer.BadParameter("must be a JSON object or array.", param_hint="PARAMS")


def _read(source: str) -> bytes:
    if source == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{source} cannot be read: {error.strerror}.", param_hint="--body") from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{text!r} is not 'NAME: VALUE'.", param_hint="--header")
    return name.strip().lower(), value.strip()


def _path(agent_id: str, deployment: str | None) -> str:
    from podium.cli.segments import deployment_segment  # noqa: PLC0415 - --help starts faster without it

    if deployment is None:
        return f"/agents/{agent_id}/rpc"
    return f"/agents/{agent_id}/deployments/{deployment_segment(deployment)}/rpc"
