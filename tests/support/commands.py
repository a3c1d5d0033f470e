"""The command line and the settings, for tests of documents and files that use them."""

import tomllib
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from podium.cli.main import app
from services.settings import Settings
from tests.support.processes import ROOT


def assert_is_command(arguments: Sequence[str]) -> None:
    """Raise `TyperException` unless `podium ARGUMENTS` is a command with these options; runs nothing."""
    command: Any = typer.main.get_command(app)
    name: str | None = "podium"
    rest, parent = list(arguments), None
    while rest != ["--help"]:
        context = command.make_context(name, rest, parent=parent)
        rest = [*context._protected_args, *context.args]
        if not rest or not isinstance(command, TyperGroup):
            break
        name, command, rest = command.resolve_command(context, rest)
        parent = context


def variables() -> set[str]:
    """All environment variables of settings."""
    return {f"PODIUM_{name.upper()}" for name in Settings.model_fields}


def project_version() -> str:
    """The version of this checkout."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version
