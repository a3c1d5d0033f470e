"""The code blocks of a document, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<language>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = ("sh", "bash", "console")
_PODIUM = re.compile(r"(^|[\s;&|(])(\.venv/bin/)?podium( |$)")
_SEPARATORS = re.compile(r"&&|\|\|?|;|&$")


def blocks(document: Path, *languages: str) -> list[str]:
    """The texts of its code blocks in these languages."""
    found = _BLOCK.finditer(document.read_text())
    return [match["text"] for match in found if match["language"] in languages]


def documented_command(document: Path, containing: str) -> str:
    """The only block of shell commands that contains this text."""
    [found] = [block for block in blocks(document, *_SHELL) if containing in block]
    return found


def podium_commands(document: Path) -> Iterator[list[str]]:
    """The arguments of every `podium ...` in its shell commands, in a container or not."""
    for block in blocks(document, *_SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in _SEPARATORS.split(line) if _PODIUM.search(line) else []:
                words = shlex.split(command.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words[:1] in (["docker"], ["kubectl"]) and "podium" in words:
                    words = words[words.index("podium") :]
                if words and Path(words[0]).name == "podium":
                    yield words[1:]
