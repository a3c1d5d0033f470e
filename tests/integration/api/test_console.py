"""The console over the real API and a real database, without a browser."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from html import unescape
from itertools import count
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import web
from pydantic import SecretStr
from pydantic_core import to_json

from api.app import make_server
from api.console import cards as cards_page
from api.console import live
from api.http.access import rules_of
from services.cancellation import background_task
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, raw_pod, running_pod
from tests.integration.api.test_events_removed import remove
from tests.support.factories import a_body
from tests.support.waiting import eventually

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
KEY = "a-test's-ключ"
FORM = "application/x-www-form-urlencoded"


class Visitor:
    """A browser that keeps its cookie and sends forms of the pages that it has read."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.cookie = ""
        self.attributes = ""

    def headers(self, **more: str) -> dict[str, str]:
        """What a browser sends."""
        return {**HTML, **({"cookie": self.cookie} if self.cookie else {}), **more}

    def keep(self, answer: Answer) -> Answer:
        """Remember the cookie of an answer."""
        if "set-cookie" in answer.headers:
            self.cookie, _, self.attributes = answer.headers["set-cookie"].partition(";")
        return answer

    async def read(self, path: str, **headers: str) -> Answer:
        """Open a page."""
        return self.keep(await self.api.get(path, headers=self.headers(**headers), allow_redirects=False))

    async def send(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        """Send a form."""
        sent = self.headers(**{"content-type": FORM, "origin": self.api.url, **headers})
        options: dict[str, Any] = {"data": urlencode(fields), "headers": sent, "allow_redirects": False}
        return self.keep(await self.api.call("POST", path, **options))

    async def confirm(self, path: str, **fields: str) -> Answer:
        """Open the page of an action and confirm it."""
        return await self.send(path, {**hidden(await self.read(path)), **fields})

    async def sign_in(self, key: str = KEY, **headers: str) -> Answer:
        """Open the page for signing in, and send the key."""
        fields = hidden(await self.read("/console/sign-in"))
        return await self.send("/console/sign-in", {**fields, "key": key}, **headers)


def hidden(answer: Answer) -> dict[str, str]:
    """The hidden fields of a page's forms."""
    assert answer.status == 200, answer.body
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.body.decode())
    return {name: unescape(value) for name, value in found}


async def two_versions(api: Api, pod: Pod) -> dict[str, Any]:
    """An agent with v1 in production and v2 as a preview."""
    await api.register("bot", "v1", acp_url=pod.url, docker_image="bot:1")
    return await api.register("bot", "v2", acp_url=pod.url, docker_image="bot:2")


async def state(api: Api, agent: dict[str, Any]) -> tuple[Any, Any]:
    """What is in production, and the generation."""
    found = (await api.get(f"/agents/{agent['id']}")).json
    return found["production_deployment_id"], found["generation"]


async def test_browsers_get_the_console_and_programs_what_they_always_got(api: Api) -> None:
    """G83: `/` leads a browser to the console; without text/html it stays a path without a route."""
    answer = await api.get("/", headers=HTML, allow_redirects=False)
    assert (answer.status, answer.headers["location"]) == (303, "/console/agents")
    for method in ("GET", "POST", "DELETE"):
        (await api.call(method, "/")).problem(404, "not-found")
    assert not any("/console" in path for path in (await api.get("/openapi.json")).json["paths"])


async def test_every_page_forbids_what_it_does_not_load_itself(api: Api, pod: Pod) -> None:
    """G85: the same strict policy on pages, errors and the sign-in; no inline script or style, nothing of others."""
    agent = await two_versions(api, pod)
    base = f"/console/agents/{agent['id']}"
    for path in ("/console/agents", base, f"{base}/versions/v2", f"{base}/rollback", "/console/system", "/console/x"):
        answer = await api.get(path, headers=HTML)
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        text = answer.body.decode()
        assert not re.search(r"<script(?! src=)|<style| style=| on\w+=|(?:src|href)=\"(?:https?:)?//", text), path
        for asset in re.findall(r'(?:src|href)="(/console/static/[^"]+)"', text):
            loaded = await api.get(asset)
            assert loaded.status == 200
            assert "immutable" in loaded.headers["cache-control"]
    assert (await api.get("/console/static/0000000000000000/console.js")).status == 404


async def test_an_agents_words_are_shown_and_never_obeyed(api: Api, pod: Pod) -> None:
    """G85: markup, other protocols and characters that turn text around are shown as text."""
    words = "<img src=x onerror=alert(1)>\u202e"
    metadata = {"author": words, "url": "javascript:alert(1)", "build": "https://ci.example/7", words: words}
    await api.register("bot", "v1", acp_url=pod.url, description=words)
    agent = await api.register("bot", "v2", acp_url=pod.url, registration_metadata=metadata)
    for path in ("", "/versions/v2"):
        text = (await api.get(f"/console/agents/{agent['id']}{path}")).body.decode()
        assert "<img" not in text
        assert "\u202e" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;\\u202e" in text
        assert 'href="javascript' not in text
    assert 'href="https://ci.example/7" rel="noopener noreferrer nofollow"' in text


async def test_a_key_opens_a_session_that_does_not_contain_it(serve: Serve, pod: Pod) -> None:
    """G84: pages lead to the sign-in; the cookie is HttpOnly, SameSite=Strict, and Secure over HTTPS."""
    api = await serve(api_key=SecretStr(KEY))
    await api.post("/agents/register", a_body("bot", acp_url=pod.url), headers={"x-api-key": KEY})
    visitor = Visitor(api)
    refused = await visitor.read("/console/agents?q=bot")
    assert (refused.status, refused.headers["location"]) == (
        303, "/console/sign-in?next=%2Fconsole%2Fagents%3Fq%3Dbot",
    )  # fmt: skip
    assert (await visitor.read("/console/agents", **{"hx-request": "true"})).status == 401
    assert (await visitor.read("/console/live")).status == 303
    assert (await api.get("/console/agents", headers={"x-api-key": KEY}, allow_redirects=False)).status == 303
    assert (await visitor.sign_in("wrong")).status == 401
    assert (await visitor.read("/console/agents")).status == 303
    assert (await visitor.sign_in()).status == 303
    assert "Secure" not in visitor.attributes
    assert "bot" in (await visitor.read("/console/agents")).body.decode()
    attributes = {each.strip() for each in visitor.attributes.split(";")}
    assert {"HttpOnly", "SameSite=strict", "Path=/console"} <= attributes
    assert KEY not in visitor.cookie
    (await api.get("/agents", headers={"cookie": visitor.cookie})).problem(401, "unauthorized")
    over_https = Visitor(api)
    await over_https.sign_in(**{"x-forwarded-proto": "https"})
    assert "Secure" in over_https.attributes
    signed_in = visitor.cookie
    fields = hidden(await visitor.read("/console/agents"))
    assert (await visitor.send("/console/sign-out", fields)).status == 303
    assert visitor.cookie.endswith('=""')
    other = await serve(api_key=SecretStr("another key"))
    assert (await other.get("/console/agents", headers={"cookie": signed_in}, allow_redirects=False)).status == 303
    forged = f"{signed_in[:-3]}AAA"
    assert (await api.get("/console/agents", headers={"cookie": forged}, allow_redirects=False)).status == 303


async def test_every_page_asks_who_is_there(serve: Serve) -> None:
    """G84: with a key set, each route of the console but the sign-in and its files leads to the sign-in."""
    api = await serve(api_key=SecretStr(KEY))
    routes = rules_of(make_server(Settings(secret_key=SecretStr("s"))).config.app.routes)  # type: ignore[union-attr]
    seen = 0
    for path, method in routes:
        if not path.startswith("/console") or method == "OPTIONS":
            continue
        if (
            "static" in path
            or path.startswith("/console/sign-in")
            or path in {"/console", "/console/sign-out", "/console/{rest}"}
        ):
            continue
        filled = re.sub(r"\{\w+\}", "00000000-0000-4000-8000-000000000000", path)
        headers = {**HTML, "x-api-key": KEY, "origin": api.url, "content-type": FORM}
        answer = await api.call(method, filled, headers=headers, allow_redirects=False)
        assert answer.status == 303, (method, path)
        assert answer.headers["location"].startswith("/console/sign-in"), (method, path)
        seen += 1
    assert seen >= 12


@pytest.mark.parametrize("next_page", ["https://evil.example/", "//evil.example", "/console/\\evil", "/agents", ""])
async def test_signing_in_leads_to_pages_of_the_console_only(serve: Serve, next_page: str) -> None:
    """G84: an address elsewhere that a link gave to the sign-in is not followed."""
    visitor = Visitor(await serve(api_key=SecretStr(KEY)))
    fields = hidden(await visitor.read("/console/sign-in"))
    answer = await visitor.send("/console/sign-in", {**fields, "next": next_page, "key": KEY})
    assert answer.headers["location"] == "/console/agents"


async def test_no_other_page_can_send_a_form(serve: Serve, pod: Pod) -> None:
    """G84: a form needs the session's token and the console's own origin, with a key and without one."""
    for name, api in (("open", await serve()), ("keyed", await serve(api_key=SecretStr(KEY)))):
        key = {"x-api-key": KEY}
        for version in ("v1", "v2"):
            body = a_body(name, deployment_id=f"{name}-{version}", acp_url=pod.url)
            agent = (await api.post("/agents/register", body, headers=key)).json
        visitor, other = Visitor(api), Visitor(api)
        path = f"/console/agents/{agent['id']}/promote?version={name}-v2"
        if (await visitor.read(path)).status != 200:
            await visitor.sign_in()
        fields = hidden(await visitor.read(path))
        await other.read("/console/sign-in")
        stolen = {**fields, "token": "0" * 64}
        assert (await visitor.send(path, stolen)).status == 403
        assert (await visitor.send(path, fields, origin="https://evil.example")).status == 403
        assert (await visitor.send(path, fields, origin="null")).status == 403
        without = await api.call(
            "POST", path, data=urlencode(fields), headers=visitor.headers(**{"content-type": FORM})
        )
        assert without.status == 403
        as_json = await visitor.send(path, fields, **{"content-type": "application/json"})
        assert as_json.status == 400
        found = (await api.get(f"/agents/{agent['id']}", headers=key)).json
        assert found["production_deployment_id"] == f"{name}-v1"
        assert (await visitor.send(path, fields)).status == 303


async def test_a_promote_needs_the_generation_that_the_page_has_shown(api: Api, pod: Pod) -> None:
    """G86: a form from before somebody else's promote changes nothing, and says what has changed."""
    agent = await two_versions(api, pod)
    await api.register("bot", "v3", acp_url=pod.url)
    visitor = Visitor(api)
    path = f"/console/agents/{agent['id']}/promote?version=v3"
    fields = hidden(await visitor.read(path))
    await api.post(f"/agents/{agent['id']}/deployments/v2/promote", {"reason": "First come"})
    stale = await visitor.read(f"{path}&seen=1")
    assert 'id="stale"' in stale.body.decode()
    refused = await visitor.send(path, {**fields, "reason": "Too late"})
    assert refused.status == 412
    assert "First come" in refused.body.decode()
    assert "Too late" in refused.body.decode()
    assert await state(api, agent) == ("v2", 2)
    for generation in ("", "-1", "2x", "9" * 30, "\u0662"):
        assert (await visitor.send(path, {**fields, "generation": generation})).status == 400
    assert await state(api, agent) == ("v2", 2)
    assert (await visitor.confirm(path, reason="Now")).status == 303
    assert await state(api, agent) == ("v3", 3)
    [newest, *_] = (await api.get(f"/agents/{agent['id']}/promotions")).json
    assert (newest["actor"], newest["reason"], newest["cause"]) == ("local", "Now", "manual")


async def test_every_action_does_what_its_page_says(api: Api, pod: Pod) -> None:
    """G86: roll back, delete, pause, resume and delete the agent, each at the generation that its page has shown."""
    agent = await two_versions(api, pod)
    base = f"/console/agents/{agent['id']}"
    visitor = Visitor(api)
    await visitor.confirm(f"{base}/promote?version=v2")
    assert (await visitor.confirm(f"{base}/rollback", to="v1", reason="Back")).status == 303
    assert await state(api, agent) == ("v1", 3)
    assert (await visitor.confirm(f"{base}/resume")).status == 303
    assert (await visitor.confirm(f"{base}/pause")).status == 303
    assert (await api.get(f"/agents/{agent['id']}")).json["auto_promote_paused"] is True
    assert b"Production cannot be deleted" in (await visitor.read(f"{base}/delete?version=v1")).body
    assert (await visitor.confirm(f"{base}/delete?version=v2", force="yes")).status == 303
    assert (await api.get(f"/agents/{agent['id']}/deployments/v2")).json["expires_at"]
    assert (await visitor.confirm(f"{base}/delete-agent", name="other")).status == 400
    assert (await visitor.confirm(f"{base}/delete-agent", name="bot")).status == 303
    assert b"Deleted" in (await visitor.read(base)).body
    assert (await visitor.read(f"{base}/explode")).status == 400
    assert (await visitor.read(f"{base}/promote?version=none")).status == 404


async def test_agents_are_found_page_by_page(api: Api, pod: Pod) -> None:
    """Fifty at a time in the order of names, forwards and backwards, with a search and kinds."""
    for number in range(60):
        await api.register(f"bot-{number:02d}", "d" + str(number), acp_url=pod.url)
    visitor = Visitor(api)

    async def names(path: str) -> list[str]:
        return re.findall(r'class="name" href="[^"]+">([^<]+)<', (await visitor.read(path)).body.decode())

    first = await names("/console/agents")
    second = await names("/console/agents?after=bot-49")
    assert first + second == [f"bot-{number:02d}" for number in range(60)]
    assert await names("/console/agents?before=bot-50") == first
    assert await names("/console/agents?q=T-07&show=ready") == ["bot-07"]
    assert await names("/console/agents?show=failed") == []
    for bad in ("show=x", "q=%00", "q=" + "a" * 101):
        assert (await visitor.read(f"/console/agents?{bad}")).status == 400


async def test_an_open_page_hears_of_changes_once(serve: Serve, pod: Pod) -> None:
    """G87: one word per change after the page was read, none for other agents, also after the stream was cut."""
    api = await serve(sse_heartbeat=timedelta(seconds=0.2))
    agent = await api.register("bot", "v1", acp_url=pod.url)
    other = await api.register("other", "o1", acp_url=pod.url)
    since = (await api.get(f"/agents/{agent['id']}")).json["sequence"]
    path = f"{api.url}/console/live?agent={agent['id']}&since="
    seen = bytearray()
    async with api.session.get(f"{path}{since}") as stream:
        assert stream.headers["content-type"] == "text/event-stream"

        async def reads(wanted: bytes) -> None:
            async def found() -> bool:
                seen.extend(await stream.content.readany())
                return wanted in seen

            await eventually(found, f"the stream has {wanted!r}")

        await reads(b"heartbeat")
        await api.register("other", "o2", acp_url=pod.url)
        assert other
        seen.clear()
        await reads(b"heartbeat")
        assert b"event: change" not in seen
        await api.register("bot", "v2", acp_url=pod.url)
        await reads(b"event: change")
    async with api.session.get(f"{path}{since}") as stream:
        seen.clear()
        await reads(b"event: change")
    assert (await api.get(f"/console/live?agent={agent['id']}&since=x")).status == 400


async def test_a_bound_key_hears_of_its_own_agents_only(serve: Serve, pod: Pod) -> None:
    """G107: an open list of agents, and one of registrations, get no word of agents that the key is not for."""
    api = await serve(api_key=SecretStr(KEY), sse_heartbeat=timedelta(seconds=0.1))
    root = {"x-api-key": KEY}

    async def registers(name: str, version: str) -> None:
        body = a_body(name, deployment_id=f"{name}-{version}", acp_url=pod.url)
        assert (await api.post("/agents/register", body, headers=root)).status == 200

    await registers("mine", "v1")
    new = {"name": "reader", "scopes": ["read"], "agents": ["mi*"]}
    visitor = Visitor(api)
    await visitor.sign_in((await api.post("/keys", new, headers=root)).json["secret"])
    page = (await visitor.read("/console/agents")).body.decode()
    [since] = re.findall(r"/console/live\?since=([^\"]+)", page)
    seen: dict[str, bytearray] = {}

    @asynccontextmanager
    async def following(which: str, query: str) -> AsyncIterator[None]:
        heard = seen[which] = bytearray()
        headers = {"cookie": visitor.cookie}
        async with api.session.get(f"{api.url}/console/live?{query}", headers=headers) as stream:

            async def listen() -> None:
                async for part in stream.content.iter_any():
                    heard.extend(part)

            async with background_task(listen(), name=which):
                yield

    async def hears(which: str, wanted: bytes, times: int = 1) -> None:
        async def has_heard() -> bool:
            return seen[which].count(wanted) >= times

        await eventually(has_heard, f"{which}: {wanted!r}")

    async with following("agents", f"since={since}"), following("messages", "watch=messages"):
        # The first word of this one says that it is connected.
        await hears("messages", b"event: change")
        seen["messages"].clear()
        await registers("other", "v1")
        # As long as the state is looked at twice.
        await hears("messages", b"heartbeat", 45)
        await hears("agents", b"heartbeat", 45)
        assert b"event: change" not in seen["agents"] + seen["messages"]
        await registers("mine", "v2")
        await hears("agents", b"event: change")
        await hears("messages", b"event: change")
    # What is no longer in memory is read from the database, with the same eyes.
    async with following("agents", f"since={since}"):
        await hears("agents", b"event: change")


async def a_reader(api: Api) -> tuple[Visitor, str]:
    """A visitor with a key that is for the agents `mi*` alone, and the id of the key."""
    new = {"name": "reader", "scopes": ["read"], "agents": ["mi*"]}
    issued = (await api.post("/keys", new, headers={"x-api-key": KEY})).json
    visitor = Visitor(api)
    await visitor.sign_in(issued["secret"])
    return visitor, issued["id"]


async def registers(api: Api, name: str, version: str) -> None:
    """A version of an agent appears."""
    body = a_body(name, deployment_id=f"{name}-{version}", acp_url="http://10.0.0.1:1")
    assert (await api.post("/agents/register", body, headers={"x-api-key": KEY})).status == 200


async def test_a_busy_stream_ends_with_its_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """G107: also if there is a change in every heartbeat interval."""
    monkeypatch.setattr(live, "PAUSE_SECONDS", 0.01)
    api = await serve(api_key=SecretStr(KEY), sse_heartbeat=timedelta(seconds=1))
    visitor, key_id = await a_reader(api)
    heard = bytearray()
    versions = count()
    async with api.session.get(f"{api.url}/console/live?since=0.0", headers={"cookie": visitor.cookie}) as stream:
        assert (await api.delete(f"/keys/{key_id}", headers={"x-api-key": KEY})).status == 200

        async def has_ended() -> bool:
            await registers(api, "mine", f"v{next(versions)}")
            while not stream.content.at_eof():
                try:
                    async with asyncio.timeout(0.1):
                        heard.extend(await stream.content.readany())
                except TimeoutError:
                    return False
            return True

        await eventually(has_ended, "the stream of a revoked key ends", seconds=8)
    assert b"event: change" in heard
    assert b"heartbeat" not in heard


async def test_a_bound_visitor_hears_if_nobody_knows(
    serve: Serve, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G107: after more events of others than are searched, and after retention has removed some: read again."""
    api = await serve(api_key=SecretStr(KEY), sse_heartbeat=timedelta(seconds=0.1))
    visitor, _ = await a_reader(api)
    await registers(api, "other", "v1")
    await registers(api, "other", "v2")

    async def hears(wanted: bytes) -> None:
        heard = bytearray()
        async with api.session.get(f"{api.url}/console/live?since=0.0", headers={"cookie": visitor.cookie}) as stream:

            async def has_heard() -> bool:
                heard.extend(await stream.content.readany())
                return wanted in heard

            await eventually(has_heard, f"the stream has {wanted!r}", seconds=5)
        assert (b"event: change" in heard) == (wanted == b"event: change")

    await hears(b"heartbeat")
    monkeypatch.setattr(live, "PAGE", 1)
    monkeypatch.setattr(live, "SEARCHED_PAGES", 2)
    await hears(b"event: change")
    monkeypatch.undo()
    assert await remove(sessions, published_up_to=1) == 1
    await hears(b"event: change")


async def test_cards_are_compared_when_a_page_asks(api: Api) -> None:
    """G83: skill by skill, by the gateway's rules and within three seconds; what cannot be known is called unknown."""
    cards: dict[str, Any] = {}

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        found = cards[request.host.partition(":")[0]]
        if found is None:
            return web.Response(status=404)
        return web.Response(body=found, content_type="application/json")

    def a_card(url: str, *skills: str, name: str = "Bot") -> bytes:
        return to_json({"name": name, "url": url, "skills": [{"id": each, "name": each} for each in skills]})

    async with running_pod(answer) as pod:
        port = pod.url.rpartition(":")[2]
        agent = await api.register("bot", "v1", acp_url=f"http://127.0.0.1:{port}")
        await api.register("bot", "v2", acp_url=f"http://localhost:{port}")
        await api.register("bot", "v3", acp_url="http://169.254.169.254")
        path = f"/console/agents/{agent['id']}/versions/{{}}/cards"

        async def shown(version: str = "v2") -> str:
            return unescape((await api.get(path.format(version))).body.decode()).split("<main")[1]

        assert f'hx-get="{path.format("v2")}"' in (await api.get(path.format("v2")[:-6])).body.decode()
        cards |= {"127.0.0.1": a_card("http://a", "greet"), "localhost": a_card("http://b", "greet", "<b>sell</b>")}
        text = await shown()
        assert "skills: <b>sell</b>" in text
        assert "skills: greet" not in text
        assert "http://b" not in text
        cards["localhost"] = a_card("http://b", *map(str, range(300)))
        assert (await shown()).count('<tr><th scope="row"') == cards_page.DIFFERENCES_MAX
        assert "And 101 more." in await shown()
        cards["localhost"] = a_card("http://b", "x" * cards_page.COMPARED_MAX_BYTES)
        assert "Its card is too large to compare: more than 64 KiB." in await shown()
        cards["localhost"] = a_card("http://b", "greet")
        assert "Both cards say the same, 1 skill included." in await shown()
        cards["localhost"] = None
        assert "This version (no card)" in await shown()
        cards["127.0.0.1"] = None
        assert "Neither has an agent card" in await shown()
        for bad in (b"{", b"[]", b"NaN"):
            cards["localhost"] = bad
            assert "Unknown. This version: Its card" in await shown()
        assert "may not be dialled" in await shown("v3")
        assert (await api.get(path.format("none"))).status == 404


async def test_cards_that_do_not_come_are_unknown(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """G83: the page does not wait for an agent that hangs."""
    monkeypatch.setattr(cards_page, "SECONDS", 0.2)
    async with raw_pod(None, close=False) as silent:
        agent = await api.register("bot", "v1", acp_url=silent.url)
        await api.register("bot", "v2", acp_url=silent.url)
        text = (await api.get(f"/console/agents/{agent['id']}/versions/v2/cards")).body.decode()
    assert text.count("It did not send its card within 0 s.") == 2


async def test_what_served_page_by_page(api: Api, pod: Pod) -> None:
    """G83: older changes by generation, with a picture of that time, while the page goes on to say what serves now."""
    agent = await two_versions(api, pod)
    for number in range(20):
        await api.promote(agent, f"v{2 - number % 2}")
    base = f"/console/agents/{agent['id']}"
    generations: list[str] = []
    path: str | None = base
    while path is not None:
        text = (await api.get(path)).body.decode()
        generations += re.findall(r'<th scope="row" class="number">(\d+)</th>', text)
        older = re.findall(r'id="older" rel="next" href="([^"]+)"', text)
        path = unescape(older[0]) if older else None
        assert 'class="timeline"' in text
    assert generations == [str(each) for each in range(21, 0, -1)]
    assert (await api.get(f"{base}?before=0")).status == 400


async def test_the_system_page_says_what_waits(api: Api, sessions: Sessions, pod: Pod) -> None:
    """What nobody publishes or probes is counted; without a worker the page says which one to run."""
    assert sessions
    await api.register("bot", "v1", acp_url=pod.url)
    text = (await api.get("/console/system")).body.decode()
    assert "none holds the lock: run podium worker relay" in text
    assert "No janitor has reported" in text
    assert "Events not published" in text


async def test_registrations_say_why_a_pod_is_not_there(api: Api, pod: Pod) -> None:
    """The outcome of each announcement with its reason, of one name or of all, also for a name without an agent."""
    await two_versions(api, pod)
    await api.post("/agents/register", a_body("bot", deployment_id="v1", acp_url=pod.url, docker_image="bot:9"))
    text = (await api.get("/console/registrations?agent=bot")).body.decode()
    assert "Rejected" in text
    assert "image" in text
    assert "agent.nobody" in (await api.get("/console/registrations?agent=nobody")).body.decode()
    assert (await api.get("/console/registrations?agent=%3Cb%3E")).status == 400


async def test_the_panel_calls_without_what_identifies_the_browser(api: Api, pod: Pod) -> None:
    """G84: the agent gets the body, and neither cookie, token, origin nor referrer; without the token, nothing."""
    agent = await two_versions(api, pod)
    visitor = Visitor(api)
    token = re.findall(r'data-token="(\w+)"', (await visitor.read(f"/console/agents/{agent['id']}/try")).body.decode())
    path = f"/console/agents/{agent['id']}/call?version=v2"
    before = len(pod.seen)
    sent = {"content-type": "application/json", "origin": api.url, "referer": f"{api.url}/console", "x-own": "1"}
    options = {"data": b'{"jsonrpc":"2.0","id":1,"method":"x"}'}
    refused = await api.call("POST", path, headers=visitor.headers(**sent), **options)
    assert refused.status == 403
    assert len(pod.seen) == before
    answer = await api.call("POST", path, headers=visitor.headers(**sent, **{"x-podium-token": token[0]}), **options)
    assert answer.json["result"] == "ok"
    assert answer.headers["x-podium-deployment-id"] == "v2"
    [seen] = pod.seen[before:]
    for name in ("cookie", "x-podium-token", "origin", "referer", "x-own"):
        assert seen.header(name) == []


async def test_scopes_and_agents_of_a_key_decide_what_is_shown(serve: Serve, pod: Pod) -> None:
    """G84: with a key to read some agents, others do not exist, nothing can be changed, and a revoked one is out."""
    api = await serve(api_key=SecretStr(KEY), sse_heartbeat=timedelta(seconds=0.1))
    root = {"x-api-key": KEY}
    agents = {}
    for name in ("mine", "other"):
        for version in ("v1", "v2"):
            body = a_body(name, deployment_id=f"{name}-{version}", acp_url=pod.url)
            agents[name] = (await api.post("/agents/register", body, headers=root)).json["id"]
    new = {"name": "reader", "scopes": ["read"], "agents": ["mi*"]}
    issued = (await api.post("/keys", new, headers=root)).json
    visitor, owner = Visitor(api), Visitor(api)
    assert (await visitor.sign_in(issued["secret"])).status == 303
    await owner.sign_in()
    text = (await visitor.read("/console/agents")).body.decode()
    assert "mine" in text
    assert agents["other"] not in text
    assert "key:reader" in text
    mine = f"/console/agents/{agents['mine']}"
    text = (await visitor.read(mine)).body.decode()
    for path in ("/promote", "/rollback", "/try"):
        assert f"{mine}{path}" not in text
    for path in ("promote?version=mine-v2", "rollback", "try", "delete-agent"):
        assert (await visitor.read(f"{mine}/{path}")).status == 403
    fields = hidden(await owner.read(f"{mine}/promote?version=mine-v2"))
    own = {**fields, "token": hidden(await visitor.read(mine))["token"]}
    forced = await visitor.send(f"{mine}/promote?version=mine-v2", own)
    assert forced.status == 403
    for path in ("", "/versions/other-v1"):
        assert (await visitor.read(f"/console/agents/{agents['other']}{path}")).status == 404
    assert (await visitor.read(f"/console/live?agent={agents['other']}&since=0")).status == 404
    assert (await visitor.read("/console/system")).status == 403
    assert "other-v1" not in (await visitor.read("/console/registrations")).body.decode()
    stream_url = f"{api.url}/console/live?agent={agents['mine']}&since=0"
    async with api.session.get(stream_url, headers={"cookie": visitor.cookie}) as stream:
        assert (await api.delete(f"/keys/{issued['id']}", headers=root)).status == 200
        await stream.content.read()
    assert (await visitor.read(mine)).status == 303


async def a_key(visitor: Visitor, **fields: str) -> tuple[Answer, str]:
    """The page with a new key's secret, and the secret."""
    answer = await visitor.confirm("/console/keys/new", name="ci", **{"scope-read": "yes", "which": "all", **fields})
    assert answer.status == 200, answer.body
    [secret] = re.findall(r"data-once>(podium_[\w-]+)<", answer.body.decode())
    return answer, secret


async def test_a_secret_is_shown_once(serve: Serve) -> None:
    """G105: no browser keeps the answer with it; sent again, the form makes nothing, and no other page shows it."""
    api = await serve(api_key=SecretStr(KEY), auth_failures_per_minute=1000)
    owner = Visitor(api)
    await owner.sign_in()
    made, secret = await a_key(owner, expires_days="2.5", calls_per_second="0.5", owner="team <b>")
    assert made.headers["cache-control"] == "no-store"
    assert (await api.get("/agents", headers={"x-api-key": secret})).status == 200
    [key] = (await api.get("/keys", headers={"x-api-key": KEY})).json
    assert (key["owner"], key["calls_per_second"], key["created_by"]) == ("team <b>", 0.5, "api-key")
    again = await owner.confirm("/console/keys/new", name="ci", **{"scope-read": "yes", "which": "all"})
    assert again.status == 409
    assert b"There is a key named ci" in again.body

    path = f"/console/keys/{key['id']}/rotate"
    fields = {**hidden(await owner.read(path)), "overlap": "3600"}
    rotated = await owner.send(path, fields)
    [second] = re.findall(r"data-once>(podium_[\w-]+)<", rotated.body.decode())
    assert (await owner.send(path, fields)).status == 409
    for valid in (secret, second):
        assert (await api.get("/agents", headers={"x-api-key": valid})).status == 200
    for page in ("/console/keys", "/console/keys?revoked=true", path, "/console/audit"):
        shown = await owner.read(page)
        assert secret.encode() not in shown.body
        assert second.encode() not in shown.body
    audit = (await owner.read("/console/audit?action=key.rotated")).body.decode()
    assert "api-key" in audit
    assert "ci" in audit

    path = f"/console/keys/{key['id']}/revoke"
    assert b"gets 401 from the next one on" in (await owner.read(path)).body
    fields = hidden(await owner.read(path))
    assert (await owner.send(path, fields)).headers["location"] == "/console/keys"
    for ended in (secret, second):
        assert (await api.get("/agents", headers={"x-api-key": ended})).status == 401
    assert (await owner.send(path, fields)).status == 409
    assert (await owner.read(path)).status == 404
    assert b"No key that is valid" in (await owner.read("/console/keys")).body
    assert b"revoked</span>" in (await owner.read("/console/keys?revoked=true")).body


async def test_a_form_for_a_key_says_what_is_wrong(serve: Serve) -> None:
    """G105: nothing is made, what was typed stays, and the sentence names the field."""
    api = await serve()
    visitor = Visitor(api)
    wrong = {
        "small letters": {"name": "Not Valid"},
        "what the key may do": {"scope-read": "no"},
        "all agents and for some": {"agents": "bot"},
        "choose all agents": {"which": "some"},
        "prefixes that end with *": {"which": "some", "agents": "bot, Team*"},
        "200 characters": {"owner": "x" * 201},
        "3,653 days": {"expires_days": "4000"},
        "“soon” is no number": {"expires_days": "soon"},
        "Calls per second": {"calls_per_second": "0"},
        "whole number": {"calls_in_flight": "1.5"},
        "“nan” is no number": {"calls_in_flight": "nan"},
    }
    for sentence, fields in wrong.items():
        sent = {"name": "ci", "scope-read": "yes", "which": "all", **fields}
        refused = await visitor.confirm("/console/keys/new", **sent)
        assert refused.status == 400, sentence
        assert sentence in unescape(refused.body.decode())
        assert f'value="{fields.get("name", "ci")}"' in refused.body.decode()
    assert (await api.get("/keys")).json == []
    assert (await visitor.read("/console/keys/00000000-0000-4000-8000-000000000000/rotate")).status == 404
    assert (await visitor.read("/console/keys/x/rotate")).status == 404


async def test_who_may_see_keys_and_the_audit_log(serve: Serve, pod: Pod) -> None:
    """G105: keys are for admins of all agents; a bound admin sees the entries of its own agents, and others nothing."""
    api = await serve(api_key=SecretStr(KEY))
    root = {"x-api-key": KEY}
    for name in ("mine", "other"):
        agent = (await api.post("/agents/register", a_body(name, acp_url=pod.url), headers=root)).json
        await api.call("PATCH", f"/agents/{agent['id']}", json={"description": f"about {name}"}, headers=root)
    visitors = {}
    for name, scope, agents in (("bound", "admin", ["mine"]), ("promoter", "promote", None)):
        new = {"name": name, "scopes": [scope, "read"], "agents": agents}
        issued = (await api.post("/keys", new, headers=root)).json
        visitors[name] = Visitor(api)
        await visitors[name].sign_in(issued["secret"])
    owner = Visitor(api)
    await owner.sign_in()
    paths = ("/console/keys", "/console/keys/new", f"/console/keys/{issued['id']}/revoke")
    for name, visitor in visitors.items():
        for path in paths:
            assert (await visitor.read(path)).status == 403, (name, path)
        token = hidden(await visitor.read("/console/agents"))["token"]
        for path in paths[1:]:
            form = {**hidden(await owner.read(path)), "name": "own", "scope-admin": "yes", "which": "all"}
            assert (await visitor.send(path, {**form, "token": token})).status == 403, (name, path)
    assert (await visitors["promoter"].read("/console/audit")).status == 403
    home = (await visitors["promoter"].read("/console/agents")).body.decode()
    assert "/console/keys" not in home
    assert "/console/audit" not in home
    log = (await visitors["bound"].read("/console/audit")).body.decode()
    assert "about mine" in log
    assert "about other" not in log
    assert "Key created" not in log.split("</form>")[-1]
    assert "about other" not in (await visitors["bound"].read("/console/audit?agent=other")).body.decode()
    assert {each["name"] for each in (await api.get("/keys", headers=root)).json} == {"bound", "promoter"}


async def test_the_audit_log_page_by_page(serve: Serve) -> None:
    """G105: fifty at a time by the id of the last one, of one actor, agent or action; others' words are text."""
    api = await serve()
    words = "<img src=x onerror=alert(1)>"
    for number in range(60):
        headers = {"x-podium-on-behalf-of": words} if number == 59 else {}
        answer = await api.post("/keys", {"name": f"k{number}", "scopes": ["read"], "owner": words}, headers=headers)
        assert answer.status == 200
    visitor = Visitor(api)
    first = (await visitor.read("/console/audit")).body.decode()
    assert "k59" in first
    assert ">k9<" not in first
    assert f"for {words.replace('<', '&lt;').replace('>', '&gt;')}, as it says" in first
    assert "<img" not in first + (await visitor.read("/console/keys")).body.decode()
    [older] = re.findall(r'rel="next" href="([^"]+)"', first)
    second = (await visitor.read(unescape(older))).body.decode()
    assert second.count('<td data-label="What"') == 10
    assert "Newest" in second
    assert "No such change" in (await visitor.read("/console/audit?actor=key:nobody")).body.decode()
    assert "No such change" in (await visitor.read("/console/audit?action=agent.deleted")).body.decode()
    assert 'data-label="What"' in (await visitor.read("/console/audit?actor=local&action=key.created")).body.decode()
    for bad in ("action=x", "before=0", "agent=A", "actor=%00", "before=99999999999999999999"):
        assert (await visitor.read(f"/console/audit?{bad}")).status == 400
