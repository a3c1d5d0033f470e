"""What agents and callers write is shown harmlessly by every command, to people and to programs."""

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from uuid import UUID

import pytest
import pytest_asyncio
import typer.main
from aio_pika.abc import AbstractConnection
from aiohttp import web
from pydantic_core import to_json
from sqlalchemy import text
from structlog.testing import capture_logs

from podium.cli import output
from podium.cli.main import app
from services.registration.batch import read_message, register_batch
from services.registration.parked import Envelope
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.integration.api.pods import running_pod
from tests.integration.cli.terminal import Ran, Terminal
from tests.support.factories import a_body
from tests.support.hostile_text import HOSTILE, LONG, forged_lines, harmful

# As long as the owner of a key can be.
OWNER = HOSTILE[:200]
# They show nothing that agents or callers have written.
WITHOUT_TEXT = {"up", "demo", "migrate", "api", "worker", "open", "broker-policy", "database-roles"}
COMMANDS = (
    "agents list",
    "agents list bot",
    "agents set bot --on-failure hold",
    "deployments list bot",
    "deployments show v1",
    "deployments wait v1",
    "promote bot v2 --reason {hostile}",
    "rollback bot --force --reason {hostile}",
    "drain bot v2",
    "history bot",
    "calls bot",
    "events",
    "events bot",
    "registrations",
    "registrations bot",
    "parked list",
    "parked show {parked}",
    "parked retry {parked}",
    "register --http --name bot --acp-url {pod} --deployment v3 --fact {hostile}={hostile} --description {hostile}",
    "deregister --http --name bot --deployment v1 --instance i",
    "deployments delete v3",
    "parked drop {parked}",
    "agents key bot",
    "keys create ci --scope read --owner {owner}",
    "keys list",
    "keys rotate ci",
    "keys revoke ci",
    "webhooks create {pod} --agent bot --description {owner} --owner {owner}",
    "webhooks list",
    "webhooks show {webhook}",
    "webhooks deliveries {webhook}",
    "webhooks test {webhook}",
    "webhooks pause {webhook}",
    "webhooks resume {webhook}",
    "webhooks replay {webhook} --since 1h",
    "webhooks rotate {webhook}",
    "webhooks delete {webhook}",
    "audit",
    "audit --agent bot",
    "doctor",
    # Errors that quote what was given.
    "agents list {hostile}",
    "deployments show {hostile}",
    "parked show {hostile}",
    "promote bot {hostile}",
    "keys revoke {hostile}",
    "webhooks show {hostile}",
    "webhooks create {hostile}",
)
# Their JSON contains the text.
WHOLE = {"agents list", "history bot", "events", "parked show {parked}", "deployments show v1", "keys list"}


def all_commands() -> Iterator[str]:
    """The names of all commands, such as `agents list`."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]  # a group
        yield from [f"{name} {each}" for each in getattr(command, "commands", ())] or [name]


@pytest.fixture(autouse=True)
def _logs_apart() -> Iterator[None]:
    """The API runs in this process: its logs must not get into the output of commands."""
    with capture_logs():
        yield


@pytest.fixture(autouse=True)
def _no_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine would show one, which acts on the terminal."""
    monkeypatch.setattr(output, "PROGRESS_AFTER_SECONDS", 600)


@pytest_asyncio.fixture
async def pod() -> AsyncIterator[str]:
    """The address of a pod that answers with hostile text."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        error = {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": HOSTILE}}
        if request.path == "/healthz":
            return web.Response(body=to_json({"agent_id": HOSTILE}), content_type="application/json")
        # The text as it is, not as JSON writes it.
        return web.Response(body=HOSTILE.encode() + b"\n" + to_json(error), content_type="application/json")

    async with running_pod(answer) as pod:
        yield pod.url


@pytest_asyncio.fixture
async def places(api: Api, pod: str, sessions: Sessions, broker: AbstractConnection) -> dict[str, str]:
    """An agent with hostile text in every field that takes any text, and what commands are formatted with."""
    del broker  # declares the topology, for a retry
    for deployment_id in ("v1", "v2"):
        facts = {HOSTILE: HOSTILE, "status": "Failed", "nested": {HOSTILE: [HOSTILE]}, "long": LONG}
        await api.register("bot", deployment_id, acp_url=pod, description=HOSTILE, registration_metadata=facts)
    agent = (await api.get("/agents/name/bot")).json
    for deployment_id in ("v2", "v1"):
        answer = await api.post(f"/agents/{agent['id']}/deployments/{deployment_id}/promote", {"reason": HOSTILE})
        assert answer.status == 200, answer.body
    malformed = a_body("bot", acp_url="", registration_metadata={HOSTILE: HOSTILE})
    envelopes = (
        Envelope("agent.bot", to_json(malformed), {HOSTILE: HOSTILE, "table": {HOSTILE: [HOSTILE]}}),
        Envelope(f"agent.{HOSTILE}", to_json(a_body("bot"))),
        Envelope("agent.bot", HOSTILE.encode() + b"\xff"),
    )
    for envelope in envelopes:
        await in_transaction(sessions, partial(register_batch, batch=[read_message(envelope)]))
    parked = (await api.get("/parked")).json
    webhook = (await api.post("/webhooks", {"url": pod, "description": OWNER, "owner": OWNER})).json["id"]
    attempt = text(
        "INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, agent_id, agent_name, sequence, attempt, "
        "outcome, status, detail, seconds) VALUES (:id, :id, 't', :id, 'bot', 1, 1, 'refused', 500, :detail, 1)"
    )
    await in_transaction(sessions, lambda session: session.execute(attempt, {"id": UUID(webhook), "detail": OWNER}))
    return {
        "webhook": webhook,
        "hostile": HOSTILE,
        "owner": OWNER,
        "pod": pod,
        "parked": next(each["id"] for each in parked if each["message_id"]),
    }


def assert_harmless(ran: Ran, command: str) -> None:
    """The output has no character that acts on a terminal, and no line that the text has begun."""
    for printed in (ran.out, ran.err):
        assert not harmful(printed), f"{command}: {harmful(printed)}"
        assert not forged_lines(printed), command


async def run(terminal: Terminal, command: str, places: dict[str, str], *more: str, at_terminal: bool = False) -> Ran:
    """Run a command with these places filled in; it may fail, but not with a traceback."""
    arguments = [word.format(**places) for word in command.split()]
    execute = terminal.displayed if at_terminal else terminal.quick
    # A narrow terminal would wrap a line where it likes.
    ran = await execute(*arguments, *more, NO_COLOR="1", COLUMNS="20000")
    assert ran.code in {0, 1, 2, 4, 5, 6}
    assert "Traceback" not in ran.err
    assert_harmless(ran, command)
    return ran


def test_every_command_is_tried() -> None:
    """A new command is tried with hostile text, or it is on the list of those that show none."""
    tried = {name for name in all_commands() for command in COMMANDS if f"{command} ".startswith(f"{name} ")}
    assert set(all_commands()) == tried | WITHOUT_TEXT | {"rpc"}


@pytest.mark.parametrize("at_terminal", [False, True])
async def test_hostile_text_has_no_effect(
    terminal: Terminal,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    at_terminal: bool,  # noqa: FBT001 - a case
) -> None:
    """G91: for people: no control or hidden character, no markup, no line of its own."""
    # A spinner has control characters of its own.
    monkeypatch.setattr("podium.cli.output.PROGRESS_AFTER_SECONDS", 60)
    shown = {command: await run(terminal, command, places, at_terminal=at_terminal) for command in COMMANDS}
    for command in ("agents list bot", "deployments show v1", "history bot", "events bot", "parked show {parked}"):
        assert "[bold]bold[/bold][link=http://evil.test]link[/link]" in shown[command].out, command
    # A fact does not look like a property of the deployment.
    lines = [line.split() for line in shown["deployments show v1"].out.splitlines()]
    assert ["status", "Ready"] in lines
    assert ["status", "Failed"] not in lines


async def test_hostile_text_is_escaped_in_json(terminal: Terminal, places: dict[str, str]) -> None:
    """G91: for programs: the text is whole, and no character acts on a terminal before it is parsed."""
    for command in COMMANDS:
        ran = await run(terminal, command, places, "--json")
        # Events are one document per line.
        documents = ran.out.splitlines() if command.startswith("events") else [ran.out] if ran.out else []
        texts = [json.dumps(json.loads(each), ensure_ascii=False) for each in documents]
        if command in WHOLE:
            whole = OWNER if command == "keys list" else HOSTILE
            assert any(json.dumps(whole, ensure_ascii=False)[1:-1] in text for text in texts), command


async def test_quiet_output_is_one_name_per_line(terminal: Terminal, places: dict[str, str]) -> None:
    """G91: scripts read ids and names; nothing that an agent wrote adds a line."""
    for command in COMMANDS:
        await run(terminal, command, places, "--quiet")


async def test_hostile_answers_of_agents(terminal: Terminal, places: dict[str, str]) -> None:
    """G91: at a terminal, an answer keeps its lines but acts on nothing; so does its error."""
    ran = await terminal.displayed("rpc", "bot", "message/send", NO_COLOR="1")
    assert ran.code == 1
    assert not harmful(ran.out)
    assert "<script>" in ran.out
    assert_harmless(Ran(ran.code, "", ran.err), "rpc")
    del places


async def test_the_api_serves_hostile_text_as_data(api: Api, places: dict[str, str]) -> None:
    """G91: no answer with it is a page, and no browser guesses that it is one."""
    agent = (await api.get("/agents/name/bot")).json["id"]
    paths = (
        "/agents", f"/agents/{agent}", "/agents/name/bot", f"/agents/{agent}/deployments", "/deployments/v1",
        f"/agents/{agent}/promotions", f"/agents/{agent}/registrations", "/registrations", "/parked",
        f"/parked/{places['parked']}", "/events?follow=false&since=oldest", "/openapi.json", "/asyncapi",
        "/agents/name/%1b%3Cscript%3E", "/agents?%3Cscript%3E=1",
    )  # fmt: skip
    for path in paths:
        answer = await api.get(path)
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in {"application/json", "application/problem+json", "text/event-stream"}, path
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert not set(answer.body) & {*range(0x0A), *range(0x0B, 0x20)}, path
