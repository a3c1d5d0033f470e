"""The operator's commands: each asks the API over HTTP and shows the answer as a table, as JSON or as bare ids."""

from typing import Any

import typer
from typer.core import TyperGroup

from podium.commands.agents import agents
from podium.commands.deployments import deployments
from podium.commands.doctor import doctor
from podium.commands.events import events
from podium.commands.history import history
from podium.commands.parked import parked
from podium.commands.promoting import promote, rollback
from podium.commands.register import register
from podium.commands.registrations import registrations
from podium.commands.rpc import rpc

ORDER = [
    "up",
    "demo",
    "doctor",
    "agents",
    "deployments",
    "promote",
    "rollback",
    "history",
    "events",
    "registrations",
    "parked",
    "rpc",
    "register",
]


class InOrder(TyperGroup):
    """Lists what people need first first, and what runs in containers last."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - Typer keeps this type to itself
        """The commands' names."""
        known = super().list_commands(ctx)
        return sorted(known, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def operator_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(agents)
    app.add_typer(deployments)
    app.add_typer(parked)
    for each in (registrations, promote, rollback, history, events, rpc, register, doctor):
        app.command()(each)
