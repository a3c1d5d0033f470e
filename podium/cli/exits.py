"""How a command ends: the exit codes, and the error that ends a command with one sentence."""

from enum import IntEnum
from http import HTTPStatus


class ExitCode(IntEnum):
    """The exit codes of all commands. Scripts depend on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    TIMED_OUT = 3
    NOT_FOUND = 4
    CONFLICT = 5
    UNAVAILABLE = 6
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "success, or nothing to do",
    ExitCode.FAILED: "failed or refused",
    ExitCode.USAGE: "wrong usage, or a setting is not valid",
    ExitCode.TIMED_OUT: "timed out while waiting",
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
    """Ends a command with an exit code. The message is one sentence, with the next step where there is one."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def code_of_status(status: int) -> ExitCode:
    """The exit code for a response with this HTTP status."""
    return next((code for known, code in _BY_STATUS.items() if known == status), ExitCode.FAILED)


def code_of_reason(reason: str | None) -> ExitCode:
    """The exit code for the `reason` with which a registrar rejected an announcement."""
    from services.errors import PodiumError  # noqa: PLC0415 - --help starts faster without it

    error_types = [PodiumError]
    for error_type in error_types:
        error_types.extend(error_type.__subclasses__())
    return next((code_of_status(each.status) for each in error_types if each.reason == reason), ExitCode.FAILED)


def epilog() -> str:
    """The table of exit codes for `podium --help`."""
    lines = [f"{code.value:>5}  {meaning}" for code, meaning in MEANINGS.items()]
    # The \b prevents the lines from being joined into one paragraph.
    return "\n".join(["\b", "Exit codes:", *lines])
