"""`podium events`: past events, new events, and reconnecting."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.integration.api.client import Api
from tests.integration.cli.terminal import Terminal
from tests.support.apps import serving

TIMEOUT_SECONDS = 20


@asynccontextmanager
async def api_at(settings: Settings, port: int) -> AsyncIterator[str]:
    """Another API at this port. Yields its address."""
    async with serving(settings.model_copy(update={"port": port})):
        yield f"http://127.0.0.1:{port}"


async def next_event(process: asyncio.subprocess.Process) -> dict[str, object]:
    """The next line of a running command, parsed as JSON."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_SECONDS)
    event: dict[str, object] = json.loads(line)
    return event


async def test_past_events_are_printed(api: Api, terminal: Terminal) -> None:
    """As text, as JSON with a cursor, or as ids; of one agent or of all."""
    agent = await api.register("bot", "v1", docker_image="bot:1")
    await api.register("other", "o1")
    await api.register("bot", "v2")
    await api.post(f"/agents/{agent['id']}/deployments/v2/promote", {"reason": "looks\x1b good"})
    printed = await terminal.quick("events", "bot")
    assert "deployment.created   v1  bot:1" in printed.out
    assert "deployment.promoted  v1  generation 1, first by podium" in printed.out
    assert "deployment.promoted  v2  generation 2, manual by local: looks  good" in printed.out
    assert "other" not in printed.out
    assert "--since 7" in printed.err
    promoted = await terminal.quick("events", "--type", "deployment.promoted")
    assert [line.split()[2] for line in promoted.out.splitlines()] == ["bot", "other", "bot"]
    as_json = await terminal.quick("events", "--agent", agent["id"], "--json", "--since", "5")
    events = [json.loads(line) for line in as_json.out.splitlines()]
    assert [(event["cursor"], int(event["sequence"]), event["subject"]) for event in events] == [
        ("6", 6, "v2"),
        ("7", 7, "v2"),
    ]
    ids = await terminal.quick("events", "bot", "--quiet", "--since", "00000000000000000006")
    assert ids.out == f"{events[-1]['id']}\n"
    nothing = await terminal.quick("events", "bot", "--since", "7")
    assert (nothing.code, nothing.out) == (0, "")
    assert "no such events" in nothing.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("bot --since x", 2, "since must be a sequence"),
        ("--since 7", 2, "since must be the id of an event"),
        ("bot --type promoted", 2, "podium.deployment.promoted.v1"),
        ("bot --since 99 --follow", 2, "after the newest event"),
        ("nobody", 4, "podium registrations --agent nobody"),
        ("bot --agent other", 2, "name one agent"),
    ],
)
async def test_invalid_arguments_are_refused(
    api: Api, terminal: Terminal, arguments: str, code: int, words: str
) -> None:
    """With the usual exit codes, and a sentence that says what to write."""
    await api.register("bot", "v1")
    ran = await terminal.quick("events", *arguments.split())
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.error


async def test_following_continues_after_the_api_was_unavailable(
    settings: Settings, terminal: Terminal, api: Api
) -> None:
    """Events that happened meanwhile are printed once and in order."""
    await api.register("bot", "v1")
    port = free_ports(["api"])["api"]
    async with api_at(settings, port) as url:
        process = await terminal.started("events", "bot", "--follow", "--json", "--since", "2", PODIUM_API_URL=url)
        cursors = [(await next_event(process))["cursor"] for _ in range(2)]
        await api.register("bot", "v2")
        cursors += [(await next_event(process))["cursor"] for _ in range(2)]
    await api.register("bot", "v3")
    async with api_at(settings, port):
        cursors += [(await next_event(process))["cursor"] for _ in range(2)]
        process.terminate()
        await process.wait()
    assert cursors == ["3", "4", "5", "6", "7", "8"]


async def test_following_starts_now_and_ends_when_the_pipe_is_closed(api: Api, terminal: Terminal) -> None:
    """As in `podium events --follow | head -1`, without an error."""
    await api.register("bot", "v1")
    process = await terminal.started("events", "--follow", "--quiet")
    assert process.stdout is not None
    first_line = asyncio.create_task(process.stdout.readline())
    number = 0
    while not first_line.done():
        number += 1
        await api.register(f"bot-{number}")
        await asyncio.wait({first_line}, timeout=0.2)
    first = (await first_line).decode().strip()
    transport = getattr(process, "_transport").get_pipe_transport(1)  # noqa: B009 - asyncio closes no single pipe
    transport.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while process.returncode is None:
                await api.register(f"bot-{(number := number + 1)}")
                await asyncio.sleep(0.05)
    assert process.stderr is not None
    assert (process.returncode, await process.stderr.read()) == (0, b"")
    old = await terminal.quick("events", "bot", "--quiet")
    assert first not in old.out.split()
