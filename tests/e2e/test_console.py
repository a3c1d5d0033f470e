"""The console in a real browser, on a real API, a real worker and real servers."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, expect
from playwright.async_api import Error as BrowserError

from api.gateway.agent_cards import CARD_PATH
from api.routes.audit import FILTER_MAX_LENGTH
from contracts.topology import REGISTRATIONS_EXCHANGE
from services.settings import Settings
from tests.integration.api.issuers import Issuer, running_issuer
from tests.integration.api.pods import Pod, running_pod
from tests.support.browser import Opened, chromium, opened
from tests.support.factories import a_body
from tests.support.processes import api_process, worker_process

AXE = Path(__file__).parent / "vendored" / "axe.min.js"
# Attributes that no page has; words that end theirs early would add them.
ATTACKED = """[...document.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())
    .filter((name) => name.startsWith('on') || ['style', 'srcdoc', 'formaction'].includes(name))"""
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}}<b hx-get='/console/sign-out' hx-trigger='load'>x</b>",
    "</pre></script><iframe srcdoc='<script>alert(1)</script>'>",
    "a\u202eb<a href=data:text/html,x>x</a>",
    "http://evil.test/\"onmouseover='alert(1)'style=\"color:red",
]
ALL_HOSTILE = " ".join(HOSTILE)
SSO = 'Example SSO"><img src=x onerror=alert(1)>'
# What may differ in the paths of pages that are alike. The first version is in production, and its page is another one.
VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|v[1-9]|(?<==).+")
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}


@pytest_asyncio.fixture(scope="module")
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
    """A pod that streams its answer in pieces. Its card is an attack, another one by each of its two addresses."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == CARD_PATH:
            return web.json_response(hostile_card(request.host.partition(":")[0]))
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
    """G106: at an issuer on another site, back to the page that was wanted, with the grants of the file; and out.

    G85: whatever the issuer says.
    """
    assert broker
    async with running_issuer("localhost") as issuer:
        issuer.who = {"groups": ["operators"], "email": "alice@example.com", "email_verified": True}
        grants = tmp_path / "grants.toml"
        grants.write_text(
            f'[[issuer]]\nurl = "{issuer.url}"\naudience = "podium"\nconsole_client_id = "the-console"\n'
            f"console_name = '{SSO}'\n"
            '[[issuer.grant]]\nclaims = { groups = "operators" }\nscopes = ["admin"]\n'
        )
        async with (
            api_process(settings, tmp_path, PODIUM_OIDC_FILE=str(grants)) as url,
            opened(browser, url, also=issuer.url) as window,
            opened(browser, url, also=issuer.url, **PHONE) as small,
        ):
            for each in (window, small):
                await sign_in_with_words(each, issuer)
            page = window.page
            await window.go("/console/audit")
            await expect(page.get_by_label("Key", exact=True)).to_be_visible()
            await page.get_by_role("link", name=f"Sign in with {SSO}").click()
            await page.get_by_role("link", name="Deny").click()
            await expect(page.locator("#error")).to_contain_text("did not sign you in (access denied)")
            await page.get_by_role("link", name="Back to the sign-in").click()
            await page.get_by_role("link", name=f"Sign in with {SSO}").click()
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


async def sign_in_with_words(window: Opened, issuer: Issuer) -> None:
    """Sign in at an issuer that answers attacks, with a refusal and then with the name of a person."""
    page, who = window.page, issuer.who
    issuer.refusal = dict.fromkeys(("error", "error_description", "error_uri"), ALL_HOSTILE)
    issuer.who = {**who, "email": ALL_HOSTILE}
    await examine(window, f"/console/sign-in?next={quote('/console/audit?actor=' + ALL_HOSTILE)}")
    for link in ("Deny", "Allow"):
        await page.get_by_role("link", name=f"Sign in with {SSO}").click()
        await page.get_by_role("link", name=link).click()
        if link == "Deny":
            await expect(page.locator("#error")).to_contain_text(f"{SSO} did not sign you in (without a reason)")
            await examine_shown(window)
            await page.get_by_role("link", name="Back to the sign-in").click()
    await expect(page.locator(".who")).to_contain_text(f"oidc:{HOSTILE[0]}")
    await examine_shown(window)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_url(f"{window.url}/console/sign-in")
    issuer.refusal, issuer.who = {"error": "access_denied"}, who


def hostile_card(host: str) -> dict[str, Any]:
    """A card all of whose words are attacks."""
    skills = [
        {"id": words, "name": words, "description": f"{host} {words}", "tags": [words], "examples": [words]}
        for words in HOSTILE
    ]
    return {
        **{words: f"{host} {words}" for words in HOSTILE},
        "name": f"{host} {ALL_HOSTILE}",
        "provider": {ALL_HOSTILE: host, "organization": f"{host} {ALL_HOSTILE}", "url": HOSTILE[-1] + host},
        "documentationUrl": f"javascript:alert('{host}')",
        "iconUrl": f"{HOSTILE[-1]}/{host}",
        "skills": skills,
    }


async def hostile_key(console: str) -> str:
    """A key whose owner is an attack, made on behalf of one."""
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
        address = pod.url if number == 0 else pod.url.replace("127.0.0.1", "localhost")
        agent = await registered(console, "bot", f"v{number}", address, **fields)
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
        f"{base}/versions/v1/cards",
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
        f"/console/audit?actor={quote(ALL_HOSTILE[:FILTER_MAX_LENGTH], safe='')}",
        f"/console/audit?action={quote(ALL_HOSTILE, safe='')}",
        "/console/none",
    ]


@pytest.mark.timeout(300)
async def test_no_words_of_an_agent_run(console: str, settings: Settings, pod: Pod, browser: Browser) -> None:
    """G85: in every field, on every page, in light and dark: no script, only http(s) links, no axe violation.

    Of pages that differ in their words alone, axe looks at the first: it takes most of the time of this test.
    """
    agent = await hostile_agent(console, settings, pod)
    key_id = await hostile_key(console)
    await fail_calls(console)
    async with opened(browser, console) as window, opened(browser, console, **PHONE) as small:
        await delete_for_a_reason(window)
        layouts: set[str] = set()
        for path in await paths_of(console, agent, key_id):
            layout = VARYING.sub("*", path)
            await asyncio.gather(*(examine(each, path, with_axe=layout not in layouts) for each in (window, small)))
            layouts.add(layout)
        await asyncio.gather(make_key(window, "made-here"), make_key(small, "made-there"))


async def fail_calls(console: str) -> None:
    """Two calls, one of which fails, so that pages show counts."""
    async with aiohttp.ClientSession() as client:
        for version in ("v0", "v1"):
            async with client.get(f"{console}/agents/name/bot") as response:
                agent = (await response.json())["id"]
            async with client.post(f"{console}/agents/{agent}/deployments/{version}/rpc", json={"id": 1}) as response:
                await response.read()


async def delete_for_a_reason(window: Opened) -> None:
    """Delete an agent; the reason in the audit log is an attack."""
    gone = await registered(window.url, "gone", "gone-v1", "http://127.0.0.1:1")
    await window.go(f"/console/agents/{gone['id']}/delete-agent")
    await window.page.locator("#name").fill("gone")
    await window.page.locator("#reason").fill(ALL_HOSTILE)
    await window.page.get_by_role("button", name="Delete").click()
    await expect(window.page.get_by_role("cell", name=HOSTILE[0])).to_be_visible()
    await examine_shown(window)


async def make_key(window: Opened, name: str) -> None:
    """Fill in the form for a key with attacks, which are refused; then make the key. Both answers keep the rules."""
    page = window.page
    await window.go("/console/keys/new")
    await page.locator("[name=scope-read]").check()
    for field in ("name", "agents", "owner", "calls_per_second", "calls_in_flight", "expires_days"):
        await page.locator(f"#{field}").fill(ALL_HOSTILE)
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.locator("#error")).to_be_visible()
    await expect(page.locator("#agents")).to_have_value(re.compile(re.escape(HOSTILE[-1])))
    await examine_shown(window)
    for field, words in (("name", name), ("agents", "bot"), ("expires_days", "1")):
        await page.locator(f"#{field}").fill(words)
    for field in ("calls_per_second", "calls_in_flight"):
        await page.locator(f"#{field}").fill("")
    await page.locator("#owner").fill(ALL_HOSTILE[:200])
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.locator("#secret")).to_contain_text("podium_")
    await examine_shown(window)


async def examine(window: Opened, path: str, *, with_axe: bool = True) -> None:
    """Open the page; it keeps the rules."""
    await window.go(path)
    # The version's page asks for the cards when it is there.
    await expect(window.page.locator("#cards[hx-get]")).to_have_count(0)
    if path.endswith("/cards"):
        for host in ("127.0.0.1", "localhost"):
            await expect(window.page.locator("#cards")).to_contain_text(f"{host} {HOSTILE[0]}")
    if path == "/console/audit":
        await expect(window.page.locator("td.text", has_text=f"“{HOSTILE[0]}")).to_have_count(1)
    await examine_shown(window, with_axe=with_axe)


async def examine_shown(window: Opened, *, with_axe: bool = True) -> None:
    """The page that is shown keeps the rules."""
    page, path = window.page, window.page.url
    kinds = "script:not([src]), style, iframe, img, object, embed, b[hx-get]"
    assert await page.locator(kinds).count() == 0, path
    assert await page.evaluate(ATTACKED) == [], path
    targets = await page.evaluate("[...document.querySelectorAll('a[href]')].map((a) => a.protocol)")
    assert set(targets) <= {"http:", "https:"}, path
    width = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], f"{path} is wider than the window"
    if not with_axe:
        return
    # Through the debugger, as the policy of the page allows no other script.
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [each for each in found["violations"] if each["impact"] in {"serious", "critical"}]
    assert serious == [], (path, [(each["id"], each["nodes"][0]["html"]) for each in serious])
