"""The commands in the guide to agents of other protocols."""

import re

from aiohttp import web

from services.storage.database import Sessions
from tests.integration.api.pods import running_pod
from tests.integration.cli.terminal import Terminal
from tests.support.documents import podium_commands
from tests.support.processes import ROOT
from tests.support.waiting import rows

GUIDE = ROOT / "docs" / "agents.md"


async def test_the_commands_of_the_guide(terminal: Terminal, sessions: Sessions) -> None:
    """They register and call pods at the addresses that they name."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": request.path})

    commands = sorted(podium_commands(GUIDE), key=lambda command: command[0] == "agents")
    assert [command[0] for command in commands] == [*["register", "rpc"] * 2, "agents"]
    async with running_pod(answer) as pod:
        for command in commands:
            typed = [re.sub(r"^http://127\.0\.0\.1:\d+$", pod.url, word) for word in command]
            await terminal.done(*typed, *(["--http"] if command[0] == "register" else []))
    assert [seen.target for seen in pod.seen] == ["/rpc", "/mcp"]
    registered = await rows(sessions, "SELECT id, rpc_path, error_style FROM deployments ORDER BY id")
    assert [tuple(row) for row in registered] == [("planner-1", "/rpc", "http"), ("tools-1", "/mcp", "jsonrpc")]
