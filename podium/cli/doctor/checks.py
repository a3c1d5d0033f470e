"""What `podium doctor` finds: one line for each thing that it has looked at."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what to do about it."""

    part: str
    verdict: Verdict
    finding: str
    advice: str = ""

    def answer(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "verdict": str(self.verdict)}


@dataclass(frozen=True)
class Examination:
    """The findings about one part, made one after the other."""

    part: str

    def ok(self, finding: str) -> Check:
        """It is as it should be."""
        return Check(self.part, Verdict.OK, finding)

    def warning(self, finding: str, advice: str) -> Check:
        """It works, but not for long or not for everybody."""
        return Check(self.part, Verdict.WARNING, finding, advice)

    def failed(self, finding: str, advice: str) -> Check:
        """It does not work."""
        return Check(self.part, Verdict.FAILED, finding, advice)


def host_and_port(url: str) -> str:
    """Where a server is, without what is secret in its URL."""
    return url.rpartition("@")[2].partition("://")[2].partition("/")[0] or url.rpartition("@")[2].partition("/")[0]


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
