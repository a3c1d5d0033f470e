"""The operator's commands: each asks the API over HTTP and shows the answer as a table, as JSON or as bare ids."""

from typing import Any

import typer
from typer.core import TyperGroup

from podium.cli.agents import agents
from podium.cli.deployments import deployments
from podium.cli.doctor.command import doctor
from podium.cli.events import events
from podium.cli.history import history
from podium.cli.parked import parked
from podium.cli.promoting import promote, rollback
from podium.cli.register import register
from podium.cli.registrations import registrations
from podium.cli.rpc import rpc

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
