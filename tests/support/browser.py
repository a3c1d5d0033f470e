"""Pages in a real browser, with everything that must never happen on one: errors, and requests to other origins."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright, expect

from podium.servers.binaries import find_chromium

# A page that has to read itself again first.
SECONDS = 15
expect.set_options(timeout=SECONDS * 1000)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The distribution's Chromium. Without one the test fails."""
    path = find_chromium(os.environ)
    assert path is not None, "Chromium is missing: 'make test' as root installs it, or install the package 'chromium'"
    async with async_playwright() as playwright:
        # Its sandbox does not work for root, as in containers.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Opened:
    """A page of the console, and what went wrong on it."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)

    async def go(self, path: str) -> None:
        """Open a path of the console."""
        await self.page.goto(f"{self.url}{path}")


@asynccontextmanager
async def opened(browser: Browser, url: str, *, also: str = "", **options: Any) -> AsyncIterator[Opened]:
    """A new window. At the end, nothing must have gone wrong on it, and it has asked only this URL, and `also`."""
    context = await browser.new_context(**options)
    found = Opened(await context.new_page(), url)
    found.page.on("pageerror", lambda error: found.wrong.append(f"error: {error}"))
    found.page.on("dialog", lambda dialog: found.wrong.append(f"dialog: {dialog.message}"))

    def said(kind: str, text: str) -> None:
        # The browser reports each answer with an error status, also those that are expected.
        if kind == "error" and "Failed to load resource: the server responded with a status of" not in text:
            found.wrong.append(f"console: {text}")

    found.page.on("console", lambda message: said(message.type, message.text))

    known = {urlsplit(each).netloc for each in (url, also)}

    def requested(target: str) -> None:
        if urlsplit(target).netloc not in known and not target.startswith("data:"):
            found.wrong.append(f"request: {target}")

    context.on("request", lambda request: requested(request.url))
    try:
        yield found
    finally:
        await context.close()
    assert found.wrong == []
