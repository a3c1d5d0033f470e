import pytest
from typer.testing import CliRunner

from podium.cli.exits import MEANINGS, ExitCode, code_of_status
from podium.cli.main import app

RUNNER = CliRunner()
API_COMMANDS = [
    "agents list",
    "agents set",
    "deployments list",
    "deployments show",
    "deployments wait",
    "deployments delete",
    "promote",
]
API_COMMANDS += ["rollback", "history", "events", "registrations", "rpc", "register", "doctor"]
API_COMMANDS += ["parked list", "parked show", "parked retry", "parked drop"]


def printed(*arguments: str) -> str:
    """The output of a command that must succeed."""
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_help_lists_every_command_and_exit_code() -> None:
    """Its lines fit a terminal of 80 columns."""
    text = printed("--help")
    for name in ("up", "demo", "doctor", "agents", "deployments", "register", "migrate", "api", "worker"):
        assert f"\n  {name} " in text
    for code, meaning in MEANINGS.items():
        assert f"{code.value:>5}  {meaning}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert set(MEANINGS) == set(ExitCode)


def test_without_a_command_the_help_is_printed() -> None:
    """Also for the group of deployments; the exit code is 0."""
    assert "Commands:" in printed()
    assert "wait" in printed("deployments")


@pytest.mark.parametrize("name", API_COMMANDS)
def test_every_command_that_calls_the_api_has_the_shared_options(name: str) -> None:
    """The address, the key, and the format of the output."""
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
def test_each_http_status_has_its_exit_code(status: int, code: int) -> None:
    """A status that is not listed has exit code 1."""
    assert code_of_status(status) == code
