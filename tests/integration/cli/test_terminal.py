"""Output at a terminal: questions, colours, progress, and the timeline."""

import signal

import pytest

from tests.integration.api.client import Api
from tests.integration.cli.terminal import Terminal

ESCAPE = "\x1b["


async def two_versions(api: Api) -> None:
    """An agent with v1 in production and v2 as a preview."""
    await api.register("bot", "v1")
    await api.register("bot", "v2")


async def test_the_newest_preview_is_promoted_only_after_a_question(api: Api, terminal: Terminal) -> None:
    """A no changes nothing; a yes promotes what was shown; after that there is no newer preview."""
    await two_versions(api)
    async with terminal.typed("promote", "bot") as no:
        await no.until("Promote v2 in place of v1")
        no.type("n\n")
        assert await no.end() == 1
    async with terminal.typed("promote", "bot") as yes:
        await yes.until("[y/N]")
        yes.type("y\n")
        assert await yes.end() == 0
    assert "bot: v2 serves now, v1 served before (generation 2)." in " ".join(yes.shown.split())
    again = await terminal.done("promote", "bot", "--yes")
    assert again.out == "Nothing changed: v2 already serves bot (generation 2).\n"


async def test_what_was_shown_is_what_is_promoted(api: Api, terminal: Terminal) -> None:
    """If another deployment is promoted before the answer, the answer promotes nothing."""
    await two_versions(api)
    await api.register("bot", "v3")
    agent = (await api.get("/agents/name/bot")).json
    async with terminal.typed("promote", "bot") as command:
        await command.until("[y/N]")
        await api.promote(agent, "v2")
        command.type("y\n")
        assert await command.end() == 5
    assert (await api.get("/agents/name/bot")).json["production_deployment_id"] == "v2"


async def test_ctrl_c_ends_a_question_and_a_wait_at_once(api: Api, terminal: Terminal) -> None:
    """The exit code is 130."""
    await two_versions(api)
    async with terminal.typed("promote", "bot") as asking:
        await asking.until("[y/N]")
        asking.process.send_signal(signal.SIGINT)
        assert await asking.end() == 130
    async with terminal.typed("deployments", "wait", "v9") as waiting:
        await waiting.until("Waiting for v9 to be ready")
        await waiting.until("0:00:0")
        waiting.process.send_signal(signal.SIGINT)
        assert await waiting.end() == 130


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
async def test_colours_are_only_for_terminals_without_no_color(
    api: Api, terminal: Terminal, variables: dict[str, str]
) -> None:
    """NO_COLOR turns them off; a pipe gets no colours, whole rows, and no blanks at line ends."""
    await two_versions(api)
    async with terminal.typed("deployments", "bot", **variables) as command:
        assert await command.end() == 0
    assert (ESCAPE in command.shown) == (not variables)
    if variables:
        assert max(len(line) for line in command.shown.splitlines()) <= 60
        piped = (await terminal.done("deployments", "bot")).out
        assert ESCAPE not in piped
        assert all(line == line.rstrip() for line in piped.splitlines())
        assert "http://10.0.0.7:8000" in piped


async def test_history_is_drawn_only_at_a_terminal(api: Api, terminal: Terminal) -> None:
    """At a terminal the timeline is above the table; a pipe gets only the table."""
    await two_versions(api)
    agent = (await api.get("/agents/name/bot")).json
    await api.promote(agent, "v2")
    async with terminal.typed("history", "bot", NO_COLOR="1") as command:
        assert await command.end() == 0
    axis, newest, oldest, empty, heading, *_ = [line.rstrip() for line in command.shown.splitlines()]
    assert (axis.split()[-1], empty, heading.split()[0]) == ("now", "", "SINCE")
    assert (newest[:3], oldest[:3], newest[-1]) == ("v2 ", "v1 ", "█")
    assert "█" not in (await terminal.done("history", "bot")).out
