"""The console in a real browser, on a real API, a real worker and real servers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, expect
from playwright.async_api import Error as BrowserError

from contracts.topology import REGISTRATIONS_EXCHANGE
from services.settings import Settings
from tests.integration.api.issuers import running_issuer
from tests.integration.api.pods import Pod, running_pod
from tests.support.browser import Opened, chromium, opened
from tests.support.factories import a_body
from tests.support.processes import api_process, worker_process

AXE = Path(__file__).parent / "vendored" / "axe.min.js"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}}<b hx-get='/console/sign-out' hx-trigger='load'>x</b>",
    "</pre></script><iframe srcdoc='<script>alert(1)</script>'>",
    "a\u202eb<a href=data:text/html,x>x</a>",
]


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    """The distribution's Chromium."""
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture
async def console(settings: Settings, broker: aio_pika.abc.AbstractConnection, tmp_path: Path) -> AsyncIterator[str]:
    """The address of an API with a worker beside it."""
    _ = broker  # its exchanges and queues exist
    async with api_process(settings, tmp_path) as url, worker_process(settings, tmp_path):
        yield url


@pytest_asyncio.fixture
async def pod() -> AsyncIterator[Pod]:
    """A pod that streams its answer in pieces."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in ("data: one\n\n", "data: <b>two</b>\n\n"):
            await response.write(piece.encode())
        return response

    async with running_pod(answer) as running:
        yield running


async def published(settings: Settings, body: dict[str, Any], key: str) -> None:
    """Publish an announcement as a pod does."""
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        exchange = await (await connection.channel()).get_exchange(REGISTRATIONS_EXCHANGE)
        message = aio_pika.Message(json.dumps(body).encode(), message_id=body["message_id"])
        await exchange.publish(message, key)


async def registered(url: str, name: str, deployment_id: str, address: str, **fields: Any) -> dict[str, Any]:
    """Register over HTTP; returns the agent."""
    async with aiohttp.ClientSession() as client:
        body = a_body(name, deployment_id=deployment_id, acp_url=address, **fields)
        async with client.post(f"{url}/agents/register", json=body) as response:
            assert response.status == 200, await response.text()
            agent: dict[str, Any] = await response.json()
            return agent


async def test_the_story_of_an_operator(console: str, settings: Settings, pod: Pod, browser: Browser) -> None:
    """G83: a registration appears live; promote, stale page, rollback, draining, retry and a call, without an error."""
    async with opened(browser, console) as window, opened(browser, console) as other:
        page = window.page
        await window.go("/")
        await expect(page.get_by_text("No agent yet")).to_be_visible()
        await expect(page.locator("#connection")).to_have_text("Live")
        await published(settings, a_body("bot", deployment_id="v1", acp_url=pod.url), "agent.bot")
        await expect(page.get_by_role("link", name="bot")).to_be_visible()
        await page.get_by_role("link", name="bot", exact=True).click()
        await registered(console, "bot", "v2", pod.url, docker_image="bot:2")
        await registered(console, "bot", "v3", pod.url, docker_image="bot:3")
        await expect(page.locator("#promote-v2")).to_be_visible()

        # A second window has an older page of another promote.
        await other.go(page.url.removeprefix(console).partition("?")[0] + "/promote?version=v3")
        await page.locator("#promote-v2").click()
        await expect(page.get_by_text("Every new call to bot goes to v2 instead of v1.")).to_be_visible()
        await page.get_by_label("Reason").fill("Better <greeting>")
        await page.get_by_role("button", name="Promote").click()
        await expect(page.locator(".is-production")).to_contain_text("v2")
        await expect(page.get_by_text("Better <greeting>")).to_be_visible()

        await expect(other.page.locator("#stale")).to_contain_text("from v1 to v2")
        await other.page.get_by_role("button", name="Promote").click()
        await expect(other.page.locator("#refused")).to_contain_text("Nothing was changed by you.")
        await expect(other.page.locator("#refused")).to_contain_text("Better <greeting>")
        assert await serves(console) == "v2"
        await converse(console)

        await roll_back(page)
        await expect(page.locator(".is-production")).to_contain_text("v1")
        await expect(page.get_by_text("paused", exact=True)).to_be_visible()
        await expect(page.locator("tr", has_text="v2").get_by_text("draining")).to_be_visible()
        await page.locator("#version-v2").click()
        await expect(page.locator("#draining")).to_contain_text("1 open conversation stays here")
        await end_conversations(console)
        await expect(page.locator("#drained")).to_contain_text("Drained")

        await call(page, console)
        await retry(page, console, settings, pod)


async def converse(console: str) -> None:
    """A call that opens a conversation with what serves."""
    async with aiohttp.ClientSession() as client:
        headers, call = {"x-podium-session": "s1"}, {"jsonrpc": "2.0", "id": 1, "method": "x"}
        async with client.post(f"{console}/agents/name/bot/rpc", json=call, headers=headers) as response:
            assert response.status == 200


async def end_conversations(console: str) -> None:
    """Conversations are over after a second."""
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{console}/agents/name/bot") as response:
            agent = (await response.json())["id"]
        async with client.patch(f"{console}/agents/{agent}", json={"conversation_idle_seconds": 1}) as response:
            assert response.status == 200


async def roll_back(page: Page) -> None:
    """From the agent's page, to what served before."""
    await page.locator("#rollback").click()
    await expect(page.get_by_role("radio").first).to_be_checked()
    await page.get_by_label("Reason").fill("Too friendly")
    await page.get_by_role("button", name="Roll back").click()


async def call(page: Page, console: str) -> None:
    """From a version's page: production and the version side by side."""
    await page.locator("#try").click()
    await page.get_by_role("button", name="Send").click()
    for side in ("left", "right"):
        await expect(page.locator(f"#{side}-answer pre")).to_contain_text("data: <b>two</b>")
        await expect(page.locator(f"#{side}-answer p")).to_contain_text("HTTP 200")
    await expect(page.locator("#left-answer p")).to_contain_text("from v1")
    await expect(page.locator("#right-answer p")).to_contain_text("from v2")
    assert console


async def retry(page: Page, console: str, settings: Settings, pod: Pod) -> None:
    """A parked message appears live, and is sent again."""
    await page.goto(f"{console}/console/parked")
    await expect(page.get_by_text("Nothing is parked")).to_be_visible()
    await published(settings, a_body("thief", deployment_id="v1", acp_url=pod.url), "agent.thief")
    await expect(page.get_by_text("deployment-of-another-agent")).to_be_visible()
    await page.locator("a[id^=parked-]").click()
    await page.locator("#retry").click()
    await expect(page.locator("#retried")).to_contain_text("Sent again")
    await page.locator("#drop").click()
    await expect(page).to_have_url(f"{console}/console/parked")


async def serves(console: str) -> str:
    """The deployment in production."""
    async with aiohttp.ClientSession() as client, client.get(f"{console}/agents/name/bot") as response:
        return str((await response.json())["production_deployment_id"])


async def test_the_story_of_a_key(console: str, browser: Browser) -> None:
    """G105: made, its secret shown once and not when the browser comes back; rotated, revoked, and found in the log."""
    async with opened(browser, console) as window:
        page = window.page
        await window.go("/console/keys")
        await page.get_by_role("link", name="Make the first key").click()
        await page.get_by_label("Name", exact=False).first.fill("ci-deploy")
        await page.get_by_label("promote", exact=False).check()
        await page.get_by_label("Names of agents").fill("support-bot, team-*")
        await page.get_by_label("Owner").fill("team <payments>")
        await page.get_by_role("button", name="Make the key").click()
        secret = await page.locator("#secret").inner_text()
        assert secret.startswith("podium_")
        await page.locator("#done").click()
        await expect(page.get_by_text("support-bot, team-*")).to_be_visible()
        # The browser has not kept the answer of the form.
        with pytest.raises(BrowserError, match="ERR_CACHE_MISS"):
            await page.go_back()
        await expect(page.locator("body")).not_to_contain_text(secret)
        await window.go("/console/keys")
        await page.locator("#rotate-ci-deploy").click()
        await page.get_by_role("button", name="Rotate").click()
        await expect(page.locator("#secret")).to_contain_text("podium_")
        await page.locator("#done").click()
        await page.locator("#revoke-ci-deploy").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("gets 401 from the next one on")).to_be_visible()
        await page.get_by_role("button", name="Revoke").click()
        await expect(page.get_by_text("No key that is valid")).to_be_visible()
        await page.get_by_role("link", name="Audit").click()
        await page.get_by_label("What").select_option("key.rotated")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("tbody tr")).to_contain_text("ci-deploy")


async def test_the_story_of_a_person_s_sign_in(
    settings: Settings, broker: aio_pika.abc.AbstractConnection, tmp_path: Path, browser: Browser
) -> None:
    """G106: at an issuer on another site, back to the page that was wanted, with the grants of the file; and out."""
    assert broker
    async with running_issuer("localhost") as issuer:
        issuer.who = {"groups": ["operators"], "email": "alice@example.com", "email_verified": True}
        grants = tmp_path / "grants.toml"
        grants.write_text(
            f'[[issuer]]\nurl = "{issuer.url}"\naudience = "podium"\nconsole_client_id = "the-console"\n'
            'console_name = "Example SSO"\n[[issuer.grant]]\nclaims = { groups = "operators" }\nscopes = ["admin"]\n'
        )
        async with (
            api_process(settings, tmp_path, PODIUM_OIDC_FILE=str(grants)) as url,
            opened(browser, url, also=issuer.url) as window,
        ):
            page = window.page
            await window.go("/console/audit")
            await expect(page.get_by_label("Key", exact=True)).to_be_visible()
            await page.get_by_role("link", name="Sign in with Example SSO").click()
            await page.get_by_role("link", name="Deny").click()
            await expect(page.locator("#error")).to_contain_text("did not sign you in (access denied)")
            await page.get_by_role("link", name="Back to the sign-in").click()
            await page.get_by_role("link", name="Sign in with Example SSO").click()
            await page.get_by_role("link", name="Allow").click()
            await expect(page).to_have_url(f"{url}/console/audit")
            await expect(page.locator(".who")).to_contain_text("oidc:alice@example.com")
            # A link on a page of another site.
            await page.goto(f"{issuer.url}/link?to={url}/console/keys")
            await page.get_by_role("link", name="Link").click()
            await expect(page.get_by_role("heading", name="API keys")).to_be_visible()
            await page.get_by_role("button", name="Sign out").click()
            await expect(page).to_have_url(f"{url}/console/sign-in")
            await window.go("/console/keys")
            await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def hostile_key(console: str) -> str:
    """A key whose owner is an attack, made on behalf of one, and a change of it for a reason that is one."""
    async with aiohttp.ClientSession() as client:
        for number, words in enumerate(HOSTILE):
            body = {"name": f"key-{number}", "scopes": ["read"], "owner": words}
            headers = {"x-podium-on-behalf-of": words} if words.isprintable() else {}
            async with client.post(f"{console}/keys", json=body, headers=headers) as response:
                assert response.status == 200, await response.text()
                made: dict[str, Any] = await response.json()
    return str(made["id"])


async def hostile_agent(console: str, settings: Settings, pod: Pod) -> dict[str, Any]:
    """An agent all of whose words are attacks, and a parked message that is one."""
    for number, words in enumerate(HOSTILE):
        metadata = {"git": {"author": words, "commit": words, "branch": words}, words: words, "list": [words]}
        fields = {
            "description": words,
            "docker_image": "".join(each for each in words if "!" <= each <= "~"),
            "registration_metadata": metadata,
        }
        agent = await registered(console, "bot", f"v{number}", pod.url, **fields)
        body = {**a_body("bot", deployment_id="taken", acp_url=words), "extra": words}
        await published(settings, body, "agent.bot")
    return agent


async def paths_of(console: str, agent: dict[str, Any], key_id: str) -> list[str]:
    """Every page of the console."""
    async with aiohttp.ClientSession() as client, client.get(f"{console}/parked") as response:
        parked = [each["id"] for each in await response.json()]
    base = f"/console/agents/{agent['id']}"
    return [
        "/console/agents",
        "/console/agents?q=nothing",
        base,
        *(f"{base}/versions/v{number}" for number in range(len(HOSTILE))),
        f"{base}/promote?version=v1",
        f"{base}/rollback",
        f"{base}/pause",
        f"{base}/delete?version=v1",
        f"{base}/delete-agent",
        f"{base}/try?version=v1",
        "/console/registrations",
        "/console/parked",
        *(f"/console/parked/{each}" for each in parked[:3]),
        "/console/system",
        "/console/keys",
        "/console/keys/new",
        f"/console/keys/{key_id}/rotate",
        f"/console/keys/{key_id}/revoke",
        "/console/audit",
        "/console/audit?action=agent.deleted",
        "/console/none",
    ]


@pytest.mark.timeout(300)
async def test_no_words_of_an_agent_run(console: str, settings: Settings, pod: Pod, browser: Browser) -> None:
    """G85: in every field, on every page, in light and dark: no script, only http(s) links, no axe violation."""
    agent = await hostile_agent(console, settings, pod)
    key_id = await hostile_key(console)
    await fail_calls(console)
    phone: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    async with opened(browser, console) as window, opened(browser, console, **phone) as small:
        for path in await paths_of(console, agent, key_id):
            await asyncio.gather(examine(window, path), examine(small, path))


async def fail_calls(console: str) -> None:
    """Two calls, one of which fails, so that pages show counts."""
    async with aiohttp.ClientSession() as client:
        for version in ("v0", "v1"):
            async with client.get(f"{console}/agents/name/bot") as response:
                agent = (await response.json())["id"]
            async with client.post(f"{console}/agents/{agent}/deployments/{version}/rpc", json={"id": 1}) as response:
                await response.read()


async def examine(window: Opened, path: str) -> None:
    """Open the page; it keeps the rules."""
    await window.go(path)
    page = window.page
    kinds = "script:not([src]), style, iframe, img, object, embed, [onerror], [onload], [style], b[hx-get]"
    assert await page.locator(kinds).count() == 0, path
    targets = await page.evaluate("[...document.querySelectorAll('a[href]')].map((a) => a.protocol)")
    assert set(targets) <= {"http:", "https:"}, path
    width = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], f"{path} is wider than the window"
    # Through the debugger, as the policy of the page allows no other script.
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [each for each in found["violations"] if each["impact"] in {"serious", "critical"}]
    assert serious == [], (path, [(each["id"], each["nodes"][0]["html"]) for each in serious])
