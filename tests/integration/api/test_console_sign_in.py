"""Signing in to the console at an issuer: who gets in, and what an attacker cannot make of it."""

import asyncio
import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from time import time
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from yarl import URL

from api.auth.binding import StartRefused, read_issuers
from api.auth.oidc import code_flow
from api.console import sessions
from services.settings import Settings
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.issuers import Issuer, a_signing_key, running_issuer
from tests.integration.api.pods import Pod
from tests.integration.api.test_console import HTML, Visitor, hidden
from tests.support.factories import a_body

GRANTS = """
[[issuer]]
url = "{url}"
audience = "podium"
console_client_id = "the-console"
console_name = "The <Issuer>"
{more}

[[issuer.grant]]
claims = {{ groups = "operators" }}
scopes = ["read", "promote"]
agents = ["mi*"]

[[issuer.grant]]
claims = {{ groups = "callers" }}
scopes = ["invoke"]
"""
ALICE: dict[str, Any] = {"groups": ["staff", "operators"], "email": "alice@example.com", "email_verified": True}
KEY = "the-key"


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer at which Alice signs in."""
    async with running_issuer() as issuer:
        issuer.who = ALICE
        yield issuer


@pytest_asyncio.fixture
async def api(serve: Serve, issuer: Issuer, tmp_path: Path) -> Api:
    """An API whose console trusts it."""
    path = tmp_path / "grants.toml"
    path.write_text(GRANTS.format(url=issuer.url, more=""))
    return await serve(oidc_file=str(path), api_key=SecretStr(KEY))


class Browser(Visitor):
    """A browser with a cookie of a sign-in beside that of its session."""

    sign_in_cookie = ""

    async def begin(self, next_page: str = "/console/agents?q=m") -> URL:
        """Go to the issuer; returns its address."""
        answer = await self.read(f"/console/sign-in/with/0?next={next_page}")
        assert answer.status == 303, answer.body
        [cookie] = answer.headers.getall("set-cookie")
        assert {"HttpOnly", "SameSite=lax", "Path=/console/sign-in/callback", "Max-Age=600"} <= {
            each.strip() for each in cookie.split(";")
        }
        self.sign_in_cookie = cookie.partition(";")[0]
        return URL(answer.headers["location"], encoded=True)

    async def agree(self, address: URL, link: str = "allow") -> str:
        """Follow a link on the issuer's page; returns where it leads."""
        async with self.api.session.get(address) as answer:
            [target] = re.findall(f'id="{link}" href="([^"]+)"', await answer.text())
        return URL(unescape(target), encoded=True).raw_path_qs

    async def come_back(self, path: str, **headers: str) -> Answer:
        """Open the callback as a browser does that comes from the issuer: without the Strict cookie."""
        sent = {**HTML, "cookie": self.sign_in_cookie, "sec-fetch-site": "cross-site", **headers}
        answer = await self.api.get(path, headers=sent, allow_redirects=False)
        for cookie in answer.headers.getall("set-cookie", []):
            if "SameSite=strict" in cookie:
                self.cookie = cookie.partition(";")[0]
        return answer

    async def sign_in_at_issuer(self, next_page: str = "/console/agents") -> Answer:
        """The whole way."""
        return await self.come_back(await self.agree(await self.begin(next_page)))


def refused(answer: Answer, status: int, words: str) -> None:
    """Nobody is signed in, the page says why, and no session is touched."""
    assert answer.status == status, answer.body
    assert words in unescape(answer.body.decode())
    assert not any("SameSite=strict" in each for each in answer.headers.getall("set-cookie", []))


async def test_who_signs_in_gets_what_the_grants_say(api: Api, pod: Pod) -> None:
    """G106: by a page that leads on, with the actor, scopes and agents of the file; and out again."""
    for name in ("mine", "other"):
        body = a_body(name, deployment_id=f"{name}-v1", acp_url=pod.url)
        agent = (await api.post("/agents/register", body, headers={"x-api-key": KEY})).json
    browser = Browser(api)
    assert "Sign in with The &lt;Issuer&gt;" in (await browser.read("/console/sign-in")).body.decode()
    answer = await browser.sign_in_at_issuer("/console/agents?q=m")
    assert answer.status == 200
    assert 'http-equiv="refresh" content="0;url=/console/agents?q=m"' in answer.body.decode()
    text = (await browser.read("/console/agents")).body.decode()
    assert "oidc:alice@example.com" in text
    assert "mine" in text
    assert agent["id"] not in text
    assert (await browser.read("/console/keys")).status == 403
    (await api.get("/agents", headers={"cookie": browser.cookie})).problem(401, "unauthorized")
    fields = hidden(await browser.read("/console/agents"))
    assert (await browser.send("/console/sign-out", fields)).status == 303
    assert (await browser.read("/console/agents")).status == 303


@pytest.mark.parametrize(
    "next_page",
    [
        "https://evil.example/",
        "//evil.example",
        "/console/%5Cevil",
        "/agents",
        "/console/sign-in/with/0",
        "/console/%0Ax",
    ],
)
async def test_signing_in_at_an_issuer_leads_to_pages_of_the_console_only(api: Api, next_page: str) -> None:
    """G106: an address elsewhere that a link gave to the sign-in is not followed, nor one that would sign in again."""
    answer = await Browser(api).sign_in_at_issuer(next_page)
    assert 'content="0;url=/console/agents"' in answer.body.decode()


async def test_another_browser_s_sign_in(api: Api) -> None:
    """G106: the answer of an issuer opens a session only in the browser that asked, once, at the same address."""
    attacker, victim = Browser(api), Browser(api)
    stolen = await attacker.agree(await attacker.begin())
    refused(await victim.come_back(stolen), 403, "another window or browser")
    await victim.begin()
    refused(await victim.come_back(stolen), 403, "another window or browser")
    mixed = f"{stolen.partition('&state=')[0]}&state={'x' * 43}"
    refused(await attacker.come_back(mixed), 403, "another window or browser")
    refused(await attacker.come_back(stolen, host="podium.example"), 403, "another address")
    assert (await attacker.come_back(stolen)).status == 200
    refused(await attacker.come_back(stolen), 403, "begin again")
    attacker.sign_in_cookie = f"{attacker.sign_in_cookie[:-3]}AAA"
    refused(await attacker.come_back(stolen), 403, "another window or browser")


async def test_a_sign_in_takes_no_longer_than_ten_minutes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """G106: after that the page says so."""
    browser = Browser(api)
    path = await browser.agree(await browser.begin())
    monkeypatch.setattr(sessions, "SIGN_IN_SECONDS", -1)
    refused(await browser.come_back(path), 403, "longer than ten minutes")


async def test_what_an_issuer_refuses(api: Api, issuer: Issuer) -> None:
    """G106: denied, an answer of another issuer, no grant, and a grant that shows no page."""
    browser = Browser(api)
    refused(await browser.come_back(await browser.agree(await browser.begin(), "deny")), 403, "(access denied)")
    path = await browser.agree(await browser.begin())
    forged = f"{path.partition('&iss=')[0]}&iss=https://evil.example"
    refused(await browser.come_back(forged), 403, "another issuer")
    state = re.findall("state=([^&]+)", path)[0]
    phishing = f"/console/sign-in/callback?error=Call%20our%20hotline&state={state}"
    refused(await browser.come_back(phishing), 403, "(without a reason)")
    for groups in (["staff"], ["callers"], []):
        issuer.who = {**ALICE, "groups": groups}
        refused(await browser.sign_in_at_issuer(), 403, "nothing here is open to you")


async def test_tokens_that_were_not_made_for_this_sign_in(api: Api, issuer: Issuer) -> None:
    """G106: wrong nonce, audience, authorized party, issuer, age or key."""
    tampered: list[dict[str, Any]] = [
        {"nonce": "of-another"},
        {"nonce": None},
        {"aud": "podium"},
        {"aud": None},
        {"aud": ["the-console", "other"], "azp": "other"},
        {"iss": "https://issuer.example"},
        {"exp": int(time()) - 60},
        {"exp": None},
        {"iat": int(time()) + 600},
        {"sub": None},
        {"key": a_signing_key("first")},
    ]
    browser = Browser(api)
    for each in tampered:
        issuer.tampered = each
        refused(await browser.sign_in_at_issuer(), 403, "is not valid")
    issuer.tampered = {"aud": ["the-console", "other"], "azp": "the-console"}
    assert (await browser.sign_in_at_issuer()).status == 200


async def test_an_issuer_that_does_not_answer(api: Api, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """G106: said before the browser is sent away, and when it comes back; a key still opens the console.

    The issuer is asked once, however many browsers want to go there.
    """
    issuer.away = True
    browser = Browser(api)
    answers = [browser.read("/console/sign-in/with/0") for _ in range(3)]
    for answer in [*await asyncio.gather(*answers), await browser.read("/console/sign-in/with/0")]:
        refused(answer, 503, "does not answer now")
    assert issuer.discoveries == 1
    issuer.away = False
    monkeypatch.setattr(code_flow, "RETRY_SECONDS", 0.0)
    path = await browser.agree(await browser.begin())
    issuer.away = True
    refused(await browser.come_back(path), 503, "cannot be fetched")
    assert (await browser.sign_in(KEY)).status == 303
    assert (await browser.read("/console/sign-in/with/7")).status == 404


async def test_a_session_ends_with_its_token_and_its_grant(
    api: Api, issuer: Issuer, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G106: not a second later than the token says, and at once where the file grants nothing any more."""
    browser = Browser(api)
    assert (await browser.sign_in_at_issuer()).status == 200
    assert (await browser.read("/console/agents")).status == 200
    path = tmp_path / "fewer.toml"
    path.write_text(GRANTS.format(url=issuer.url, more="").replace('groups = "operators"', 'groups = "owners"'))
    fewer = await serve(oidc_file=str(path), api_key=SecretStr(KEY))
    elsewhere = await fewer.get("/console/agents", headers=browser.headers(), allow_redirects=False)
    assert elsewhere.status == 303
    monkeypatch.setattr("api.console.visitors.time", lambda: time() + 60)
    assert (await browser.read("/console/agents")).status == 303


@pytest.mark.parametrize("in_form", [False, True], ids=["client_secret_basic", "client_secret_post"])
async def test_a_confidential_client_proves_itself(
    serve: Serve, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_form: bool
) -> None:
    """G106: as the issuer supports it, with the secret in the named variable, without which the API does not start."""
    issuer.client_secret, issuer.secret_in_form = "a secret", in_form
    path = tmp_path / "grants.toml"
    path.write_text(GRANTS.format(url=issuer.url, more='console_client_secret_env = "CONSOLE_SECRET"'))
    with pytest.raises(StartRefused, match="CONSOLE_SECRET is not set"):
        read_issuers(Settings(oidc_file=str(path)))
    monkeypatch.setenv("CONSOLE_SECRET", "a secret")
    api = await serve(oidc_file=str(path))
    assert (await Browser(api).sign_in_at_issuer()).status == 200
    monkeypatch.setenv("CONSOLE_SECRET", "another")
    refused(await Browser(api).sign_in_at_issuer(), 403, "begin again")


async def test_a_link_from_another_site_keeps_the_session(api: Api) -> None:
    """G106: the browser sends no Strict cookie with it; a page leads on, and nobody is signed out."""
    browser = Browser(api)
    await browser.sign_in_at_issuer()
    elsewhere = {**HTML, "sec-fetch-site": "cross-site"}
    answer = await api.get("/console/sign-in/with/0?next=/console/system", headers=elsewhere, allow_redirects=False)
    assert (answer.status, answer.headers["location"]) == (303, "/console/sign-in?next=%2Fconsole%2Fsystem")
    assert "set-cookie" not in answer.headers
    for path in ("/console/agents?q=m", "/console/sign-in?next=/console/system"):
        answer = await api.get(path, headers=elsewhere, allow_redirects=False)
        assert answer.status == 200
        assert f'content="0;url={path}"' in answer.body.decode()
        assert "set-cookie" not in answer.headers


async def test_guessing_codes_is_limited(serve: Serve, issuer: Issuer, tmp_path: Path) -> None:
    """G106: after some refusals the issuer is not asked for this address. Links of other sites do not use them up."""
    path = tmp_path / "grants.toml"
    path.write_text(GRANTS.format(url=issuer.url, more=""))
    api = await serve(oidc_file=str(path), auth_failures_per_minute=2)
    for _ in range(3):
        refused(await Browser(api).come_back("/console/sign-in/callback?code=x&state=y"), 403, "begin again")
    browser = Browser(api)
    good = await browser.agree(await browser.begin())
    guess = re.sub("code=[^&]+", "code=guess", good)
    for _ in range(2):
        refused(await browser.come_back(guess), 403, "begin again")
    for answer in (await browser.come_back(good), await browser.read("/console/sign-in/with/0")):
        refused(answer, 429, "Too many")
    assert len(issuer.codes) == 1


async def test_a_person_with_more_claims_than_a_cookie_holds(api: Api, issuer: Issuer) -> None:
    """G106: is told so; the browser would drop the cookie without a word. Letters of any alphabet count as written."""
    name = "".join(chr(0x4E00 + number**3 % 19_997) for number in range(1500))
    issuer.who = {**ALICE, "email": f"{name}@example.com"}
    refused(await Browser(api).sign_in_at_issuer(), 403, "more about you than a cookie can hold")


async def test_a_token_that_ends_in_fifty_thousand_years(api: Api, issuer: Issuer) -> None:
    """G106: issuers that write milliseconds cannot break the pages; the session ends with its cookie."""
    issuer.tampered = {"exp": int(time() * 1000)}
    browser = Browser(api)
    assert (await browser.sign_in_at_issuer()).status == 200
    assert (await browser.read("/console/agents")).status == 200
