"""The results of `podium doctor`: one line per check."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """The result of one check, and what to do about it."""

    part: str
    verdict: Verdict
    finding: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """The line of `--json`."""
        return {**asdict(self), "verdict": str(self.verdict)}


@dataclass(frozen=True)
class Part:
    """A part of the system, such as RabbitMQ; makes the results of its checks."""

    name: str

    def ok(self, finding: str) -> Check:
        """Nothing is wrong."""
        return Check(self.name, Verdict.OK, finding)

    def warning(self, finding: str, advice: str) -> Check:
        """It works now, but it may fail later or for some users."""
        return Check(self.name, Verdict.WARNING, finding, advice)

    def failed(self, finding: str, advice: str) -> Check:
        """It does not work."""
        return Check(self.name, Verdict.FAILED, finding, advice)


def host_and_port(url: str) -> str:
    """The host and port of a server's URL, without user and password."""
    return url.rpartition("@")[2].partition("://")[2].partition("/")[0] or url.rpartition("@")[2].partition("/")[0]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
