"""How a command ends: exit codes that scripts can rely on, and the one sentence that goes with a failure."""

from enum import IntEnum
from http import HTTPStatus


class ExitCode(IntEnum):
    """What the exit code of every command means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    TIMED_OUT = 3
    NOT_FOUND = 4
    CONFLICT = 5
    UNAVAILABLE = 6
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done, or nothing to do",
    ExitCode.FAILED: "failed or refused",
    ExitCode.USAGE: "called in a wrong way, or a setting is not valid",
    ExitCode.TIMED_OUT: "what was waited for did not happen in time",
    ExitCode.NOT_FOUND: "no such agent or deployment, it was deleted, or nothing served then",
    ExitCode.CONFLICT: "not possible now: not Ready, in production, or changed meanwhile",
    ExitCode.UNAVAILABLE: "the API, a server or the agent cannot be reached: try again",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}

_BY_STATUS = {
    HTTPStatus.BAD_REQUEST: ExitCode.USAGE,
    HTTPStatus.NOT_FOUND: ExitCode.NOT_FOUND,
    HTTPStatus.GONE: ExitCode.NOT_FOUND,
    HTTPStatus.CONFLICT: ExitCode.CONFLICT,
    HTTPStatus.PRECONDITION_FAILED: ExitCode.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS: ExitCode.UNAVAILABLE,
    HTTPStatus.BAD_GATEWAY: ExitCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: ExitCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: ExitCode.UNAVAILABLE,
}


class Failure(Exception):
    """A command could not do it; the text is one sentence that names the next step."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


def code_of_status(status: int) -> ExitCode:
    """The exit code for a refusal with this HTTP status."""
    return next((code for known, code in _BY_STATUS.items() if known == status), ExitCode.FAILED)


def code_of_reason(reason: str | None) -> ExitCode:
    """The exit code for a refusal that a worker has named."""
    from services.errors import PodiumError  # noqa: PLC0415 - --help starts faster without it

    kinds = [PodiumError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return next((code_of_status(kind.status) for kind in kinds if kind.reason == reason), ExitCode.FAILED)


def epilog() -> str:
    """The table of exit codes for `podium --help`."""
    lines = [f"{code.value:>5}  {meaning}" for code, meaning in MEANINGS.items()]
    # A line of \b keeps a paragraph from being wrapped into one.
    return "\n".join(["\b", "Exit codes:", *lines])
