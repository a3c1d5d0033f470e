"""`podium rpc`: send one JSON-RPC call to an agent or to one deployment, and print the answer as it arrives."""

import codecs
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, TextIO

import typer
from pydantic_core import from_json

from podium.cli.command import AgentArgument, CommandContext, command
from podium.cli.exits import ExitCode, Failure, code_of_status
from podium.cli.output import end_at_closed_pipe
from podium.printable import plain_lines

if TYPE_CHECKING:
    from aiohttp import ClientResponse

STDIN = "-"
HEADERS = {
    "content-type": "application/json",
    # Agents answer with JSON, JSON lines or Server-Sent Events.
    "accept": "application/json, text/event-stream, */*;q=0.5",
}
# Longer documents are printed, but not searched for an error.
MAX_SEARCHED_BYTES = 8 * 1024 * 1024
SSE_DATA = b"data:"

Method = Annotated[
    str | None, typer.Argument(metavar="METHOD", help="JSON-RPC method, such as message/send.", show_default=False)
]
Params = Annotated[
    str | None,
    typer.Argument(metavar="PARAMS", help="Parameters as JSON, or - to read them from stdin.", show_default=False),
]


@command
async def rpc(
    context: CommandContext,
    agent: AgentArgument,
    method: Method = None,
    params: Params = None,
    *,
    deployment: Annotated[
        str | None, typer.Option(metavar="ID", help="Call this deployment, whether it is in production or not.")
    ] = None,
    body: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="Send this file (- for stdin) unchanged as the request, instead of METHOD and PARAMS.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Send this header; repeatable."),
    ] = None,
) -> None:
    """Call an agent with JSON-RPC, and print the answer.

    The answer is printed as it arrives. The exit code is 1 if the answer contains an error.
    """
    content = _content(method, params, body)
    headers = {**HEADERS, **dict(_header(each) for each in header or [])}
    async with context.output.progress("Reading the agent"):
        found = await context.api.agent(agent)
    await _call(context, _path(found["id"], deployment), content, headers)


async def _call(context: CommandContext, path: str, content: bytes, headers: dict[str, str]) -> None:
    """Send the request and print the response. Raises `Failure` if it is an error."""
    import aiohttp  # noqa: PLC0415 - --help starts faster without it

    from podium.cli.client import CONNECT_SECONDS, GENERATION_HEADER  # noqa: PLC0415 - as above

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with AsyncExitStack() as stack:
        async with context.output.progress("Waiting for the answer"):
            request = context.api.request("POST", path, data=content, headers=headers, timeout=timeout)
            response = await stack.enter_async_context(request)
        try:
            error = await _print(response)
        except aiohttp.ClientError:
            raise Failure(
                "The answer ended early: the agent may have done the work, so check before you repeat the call."
            ) from None
        # Only responses of agents have this header; the gateway's own errors do not.
        _raise_error(response.status, error, from_agent=GENERATION_HEADER in response.headers)


async def _print(response: "ClientResponse") -> str | None:
    """Print the response as it arrives. Returns the message of the first JSON-RPC error in it."""
    detector, printer = ErrorDetector(), Printer()
    try:
        async for chunk in response.content.iter_any():
            detector.feed(chunk)
            printer.print(chunk)
    finally:
        printer.end()
    return detector.end()


def _raise_error(status: int, error: str | None, *, from_agent: bool) -> None:
    if from_agent and error is not None:
        raise Failure(f"The agent answered with an error: {error}")
    if from_agent and status >= 400:  # noqa: PLR2004 - HTTP: refused or failed
        raise Failure(f"The agent answered HTTP {status}.")
    if not from_agent:
        code = code_of_status(status) if status >= 400 else ExitCode.FAILED  # noqa: PLR2004 - as above
        raise Failure(error or f"The gateway answered HTTP {status}.", code)


def _content(method: str | None, params: str | None, body: str | None) -> bytes:
    """The body of the request. Raises `typer.BadParameter`."""
    if body is not None:
        if method is not None:
            raise typer.BadParameter("cannot be combined with METHOD and PARAMS.", param_hint="--body")
        return _read(body)
    if method is None:
        raise typer.BadParameter("name a method, or send a --body.", param_hint="METHOD")
    call = f'{{"jsonrpc":"2.0","id":1,"method":{json.dumps(method)}'
    if params is None:
        return f"{call}}}".encode()
    text = _read(params).decode(errors="replace") if params == STDIN else params
    _check_params(text)
    # The text is sent as it is: parsing and writing it again would drop repeated keys.
    return f'{call},"params":{text}}}'.encode()


def _check_params(text: str) -> None:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}.", param_hint="PARAMS") from None
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
    from podium.cli.client import deployment_segment  # noqa: PLC0415 - --help starts faster without it

    if deployment is None:
        return f"/agents/{agent_id}/rpc"
    return f"/agents/{agent_id}/deployments/{deployment_segment(deployment)}/rpc"


class ErrorDetector:
    """Finds the first JSON-RPC error in an answer: a JSON document, JSON lines, or Server-Sent Events."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._line = bytearray()
        self._document = bytearray()
        self._parsed_a_line = False

    def feed(self, chunk: bytes) -> None:
        """Search the next chunk."""
        if len(self._document) <= MAX_SEARCHED_BYTES:
            self._document += chunk
        *lines, rest = (bytes(self._line) + chunk).split(b"\n")
        for line in lines:
            self._search(line)
        self._line = bytearray(rest if len(rest) <= MAX_SEARCHED_BYTES else b"")

    def end(self) -> str | None:
        """The message of the first error; None if there is no error."""
        self._search(bytes(self._line))
        if not self._parsed_a_line:
            self._search(bytes(self._document))
        return self.error

    def _search(self, text: bytes) -> None:
        text = text.strip().removeprefix(SSE_DATA)
        if not text.strip().startswith((b"{", b"[")):
            return
        try:
            found = from_json(text)
        except ValueError:
            return
        self._parsed_a_line = True
        for answer in found if isinstance(found, list) else [found]:
            error = answer.get("error") if isinstance(answer, dict) else None
            if error is not None and self.error is None:
                self.error = _error_message(error)


def _error_message(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else str(error)


class Printer:
    """Prints chunks of bytes at once: unchanged into a pipe, as harmless text at a terminal."""

    def __init__(self, text: TextIO | None = None) -> None:
        self._text = text or sys.stdout
        self._terminal = self._text.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended_line = True

    def print(self, chunk: bytes) -> None:
        """Print the next chunk. Ends the command if the reader has closed the pipe."""
        if not self._terminal:
            try:
                self._bytes().write(chunk)
                self._bytes().flush()
            except BrokenPipeError:
                end_at_closed_pipe()
            return
        shown = plain_lines(self._decoder.decode(chunk))
        if shown:
            self._ended_line = shown.endswith("\n")
        self._text.write(shown)
        self._text.flush()

    def end(self) -> None:
        """At a terminal, end the last line."""
        if not self._ended_line:
            self._text.write("\n")
            self._text.flush()

    def _bytes(self) -> BinaryIO:
        return self._text.buffer
