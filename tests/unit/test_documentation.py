import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr, TypeAdapter
from pydantic.fields import FieldInfo
from typer.core import TyperGroup
from typer.exceptions import TyperException

from contracts.events import EVENT_TYPES, CloudEvent, DeploymentPromoted, event_source
from contracts.messages import DeregisterInstance, RegisterAgent, RegistrationMetadata
from podium.cli.exits import MEANINGS
from podium.cli.main import app
from services.settings import Settings
from tests.support.commands import assert_is_command, variables
from tests.support.documents import blocks, podium_commands
from tests.support.processes import ROOT
from workers.runner import CONNECTIONS

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATIONS = ROOT / "docs" / "operations.md"
CONTRACTS = ROOT / "docs" / "contracts.md"
COMMAND_LINE = ROOT / "docs" / "cli.md"
SECTION = re.compile(r"^### `podium (?P<command>[a-z -]+)`$\n(?P<text>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SETTINGS = re.compile(r"(<!-- settings: .*? -->\n)(.*?)(<!-- end of settings -->)", re.DOTALL)
RENEW = "PODIUM_RENEW_SNAPSHOTS"
# Only docker-compose.yml reads it.
OF_COMPOSE = {"PODIUM_METRICS_KEY"}
# Addresses of the command line alone, which no process of Podium reads as a setting.
OF_THE_COMMAND_LINE = {"PODIUM_API_URL", "PODIUM_AGENT_KEY", "PODIUM_MANAGEMENT_AUTH"}


def id_of(document: Path) -> str:
    """`docs/operations.md`."""
    return str(document.relative_to(ROOT))


def settings_table() -> str:
    """Every setting as a line of a table."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `PODIUM_{name.upper()}` | {default_of(field)} | {meaning_of(field)} |")
    return "\n".join(lines) + "\n"


def default_of(field: FieldInfo) -> str:
    """The default as it would be written into the variable."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        return "-"
    if isinstance(value, timedelta):
        value = TypeAdapter(timedelta).dump_python(value, mode="json")
    return f"`{value}`" if value not in {None, "", ()} else "-"


def meaning_of(field: FieldInfo) -> str:
    """The description; where there is none, what may be chosen."""
    patterns = [each.pattern for each in field.metadata if getattr(each, "pattern", None)]
    text = field.description or ", ".join(patterns).strip("^$()").replace("|", " or ")
    return text.replace("|", r"\|")


def test_the_operations_guide_lists_every_setting() -> None:
    """Each variable with its default and meaning, as `Settings` has them."""
    from tests.conftest import EXTERNAL  # noqa: PLC0415 - a conftest is importable only while tests run

    text = OPERATIONS.read_text()
    renewed = SETTINGS.sub(lambda found: f"{found[1]}\n{settings_table()}{found[3]}", text)
    assert settings_table() in renewed, "the markers around the table are gone"
    if EXTERNAL.get(RENEW) == "1":
        OPERATIONS.write_text(renewed)
        text = renewed
    assert text == renewed, (
        "\nThe settings have changed and docs/operations.md does not say so; write its table anew and read it:\n\n"
        f"    {RENEW}=1 .venv/bin/pytest {Path(__file__).relative_to(ROOT)}\n"
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=id_of)
def test_every_podium_command_shown_exists(document: Path) -> None:
    """Whoever copies a command from a document is not told that there is no such command or option."""
    for arguments in podium_commands(document):
        assert_is_command(arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=id_of)
def test_every_make_target_named_exists(document: Path) -> None:
    """In a sentence or in a block of commands."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^|\$ )make ([a-z]+)", document.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("wrong", ["publish", "promote", "promote bot --by amy", "deployments wait", "api --port http"])
def test_a_wrong_command_is_found(wrong: str) -> None:
    """One that does not exist, an argument missing, an option unknown, a value that is none."""
    with pytest.raises(TyperException):
        assert_is_command(wrong.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=id_of)
def test_every_variable_named_exists(document: Path) -> None:
    """Whoever sets a variable that a document names has set something."""
    named = set(re.findall(r"\bPODIUM_[A-Z_]*[A-Z]\b", document.read_text()))
    assert named <= variables() | OF_THE_COMMAND_LINE | OF_COMPOSE


@pytest.mark.parametrize("document", DOCUMENTS, ids=id_of)
def test_every_file_referred_to_is_there(document: Path) -> None:
    """No link and no path of this repository leads nowhere."""
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(r"(?:deploy|examples|contracts|docs|tests)/[\w./-]*\.[a-z]+\b", text):
        assert (ROOT / path).exists(), path


def sources() -> Iterator[str]:
    """The text of every module of Podium."""
    for package in ("services", "workers", "api", "podium"):
        yield from (path.read_text() for path in (ROOT / package).rglob("*.py"))


def said(code: str) -> set[str]:
    """Every log action in this code."""
    return set(re.findall(r'"?(?:action|back)"?[=:] ?"([a-z]+\.[a-z_]+)"', code))


def test_every_log_action_of_a_worker_is_explained() -> None:
    """Whoever reads its log finds out what it means."""
    code = "\n".join(path.read_text() for path in (ROOT / "workers").rglob("*.py"))
    text = OPERATIONS.read_text()
    assert {action for action in said(code) if f"`{action}`" not in text} == set()


def test_the_connections_of_a_worker_process_are_counted() -> None:
    """So that an operator can add up what PostgreSQL has to allow."""
    listed = ", ".join(f"{name} {count}" for name, count in CONNECTIONS.items())
    wanted = f"A worker process opens up to {sum(CONNECTIONS.values())} ({listed})."
    assert wanted in OPERATIONS.read_text().replace("\n  ", " ")


def test_every_log_action_and_metric_to_watch_exists() -> None:
    """An alert on a documented action or metric can fire."""
    text = OPERATIONS.read_text()
    code = "\n".join(sources())
    logs = text[text.index("Logs are one JSON object") :]
    actions = set(re.findall(r"`([a-z]+\.[a-z_]+)`", logs)) - {"podium.parked"}
    assert actions
    assert actions <= said(code), actions - said(code)
    metrics = set(re.findall(r"`(podium_(?:http|rpc)_[a-z_]+)`", text))
    assert metrics
    # A counter's name gets its ending when it is shown.
    assert all(f'"{metric.removesuffix("_total")}"' in code for metric in metrics), metrics


def test_the_contracts_guide_names_every_event_and_every_field() -> None:
    """No type of event, no field of its data and none of an announcement is missing."""
    text = CONTRACTS.read_text()
    for data, event_type in EVENT_TYPES.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{event_type}`")]
        own = data.model_fields.keys() - {"agent_id", "agent_name", "deployment_id"}
        assert {field for field in own if f"`{field}`" not in row} == set(), event_type
    for field in RegisterAgent.model_fields:
        assert f"| `{field}` |" in text, field
    for field in RegistrationMetadata.model_fields:
        assert f"`….{field}`" in text, field


def test_what_the_contracts_guide_shows_is_valid() -> None:
    """Whoever copies its messages is understood, and its event is one that Podium could send."""
    announcement, goodbye, event = blocks(CONTRACTS, "json")
    assert DeregisterInstance.model_validate_json(goodbye).kind == "deregister"
    assert RegisterAgent.model_validate_json(announcement).deployment_id
    shown = CloudEvent.model_validate_json(event)
    assert shown.source == event_source(str(shown.data["agent_id"]))
    DeploymentPromoted.model_validate(shown.data)


def commands() -> dict[str, set[str]]:
    """Every command, such as `deployments wait`, with its options."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, set[str]]]:
        if isinstance(command, TyperGroup):
            for name, each in command.commands.items():
                yield from below(each, (*words, name))
        else:
            yield " ".join(words), {option for each in command.params for option in (*each.opts, *each.secondary_opts)}

    return dict(below(typer.main.get_command(app), ()))


def test_the_command_line_s_guide_names_every_command() -> None:
    """Each has a section of its own with an example, and no section is about one that is gone."""
    sections = {section["command"]: section["text"] for section in SECTION.finditer(COMMAND_LINE.read_text())}
    assert sorted(sections) == sorted(commands())
    for name, text in sections.items():
        assert re.search(rf"^(\w+=\S+ )*podium {name.removesuffix(' list')}\b", text, re.MULTILINE), name


def test_every_option_that_the_command_line_s_guide_names_exists() -> None:
    """In a command's section: of this command; elsewhere: of some command."""
    text, known = COMMAND_LINE.read_text(), commands()
    for section in SECTION.finditer(text):
        assert set(OPTION.findall(section["text"])) <= known[section["command"]], section["command"]
    anywhere = {option for options in known.values() for option in options}
    everywhere = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    assert set(OPTION.findall(SECTION.sub("", text))) <= anywhere | everywhere | {"--help"}


def test_the_command_line_s_guide_lists_every_exit_code() -> None:
    """With the meanings that `podium --help` gives."""
    listed = re.findall(r"^\| (\d+) \| (.+) \|$", COMMAND_LINE.read_text(), re.MULTILINE)
    assert listed == [(str(code.value), meaning) for code, meaning in MEANINGS.items()]
