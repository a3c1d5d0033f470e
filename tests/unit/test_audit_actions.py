"""The audit page of the console offers every action that is written."""

import ast
from collections.abc import Iterator
from pathlib import Path

from api.console.audit import ACTIONS

SERVICES = Path(__file__).parents[2] / "services"
# `record(session, caller, action, ...)`
ACTION = 2


def written() -> Iterator[str]:
    """The third argument of each call of `record` and `_record`, where it is a text."""
    for path in SERVICES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"record", "_record"}:
                for argument in node.args[ACTION : ACTION + 1]:
                    if isinstance(argument, ast.Constant):
                        yield str(argument.value)


def test_every_action_can_be_chosen() -> None:
    """And none that is never written."""
    assert set(written()) == set(ACTIONS)
