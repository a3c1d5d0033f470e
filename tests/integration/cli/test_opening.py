"""`podium open`: the console in a browser, which here is a script."""

from pathlib import Path

from tests.integration.cli.terminal import Terminal
from tests.support.waiting import eventually


async def test_the_browser_gets_the_console_s_address(terminal: Terminal, tmp_path: Path) -> None:
    """The program in BROWSER is started with it, and it is printed for machines without one; --quiet starts nothing."""
    asked = tmp_path / "asked"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {asked}\n')
    browser.chmod(0o755)
    url = f"{terminal.variables['PODIUM_API_URL']}/console/agents"
    opened = await terminal.done("open", BROWSER=str(browser))
    assert opened.out == f"{url}\n"

    async def was_asked() -> bool:
        return asked.exists() and asked.read_text() == f"{url}\n"

    await eventually(was_asked, "the browser is started")
    assert (await terminal.done("open", "--quiet", BROWSER=str(browser))).out == f"{url}\n"
    assert (await terminal.done("open", "--json", BROWSER=str(browser))).json == {"url": url}
    assert asked.read_text() == f"{url}\n"


async def test_without_a_browser_the_address_is_left(terminal: Terminal, tmp_path: Path) -> None:
    """A browser that cannot be started is said; an API that does not answer is said before anything is opened."""
    failing = await terminal.run("open", BROWSER=str(tmp_path / "missing"))
    assert failing.code != 0
    assert failing.out.startswith("http://")
    assert "open the address above" in failing.err
