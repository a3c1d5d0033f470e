import pytest
from typer.testing import CliRunner

from podium.cli.exits import MEANINGS, ExitCode, code_of_status
from podium.cli.main import app

RUNNER = CliRunner()
ASKING = [
    "agents list",
    "agents set",
    "deployments list",
    "deployments show",
    "deployments wait",
    "deployments delete",
    "promote",
]
ASKING += ["rollback", "history", "events", "registrations", "rpc", "register", "doctor"]
ASKING += ["parked list", "parked show", "parked retry", "parked drop"]


def printed(*arguments: str) -> str:
    """What a command prints, which must end well."""
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_help_lists_every_command_and_exit_code() -> None:
    """In lines that fit a terminal of 80 columns."""
    text = printed("--help")
    for name in ("up", "demo", "doctor", "agents", "deployments", "register", "migrate", "api", "worker"):
        assert f"\n  {name} " in text
    for code, meaning in MEANINGS.items():
        assert f"{code.value:>5}  {meaning}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert set(MEANINGS) == set(ExitCode)


def test_no_command_is_help_and_no_error() -> None:
    """Also for the group of deployments."""
    assert "Commands:" in printed()
    assert "wait" in printed("deployments")


@pytest.mark.parametrize("name", ASKING)
def test_every_command_that_asks_takes_the_same_options(name: str) -> None:
    """Where the API is, and how it answers."""
    text = printed(*name.split(), "--help")
    for option in ("--api-url", "--api-key", "--json", "--quiet"):
        assert option in text


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, 2),
        (401, 1),
        (403, 1),
        (404, 4),
        (409, 5),
        (410, 4),
        (412, 5),
        (413, 1),
        (500, 1),
        (502, 6),
        (503, 6),
        (504, 6),
    ],
)
def test_each_refusal_has_its_exit_code(status: int, code: int) -> None:
    """Whatever is not listed failed."""
    assert code_of_status(status) == code
