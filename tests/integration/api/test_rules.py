"""The rules of routes: every route, with every scope, for the caller's own agents and for others."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio
from litestar.routes import HTTPRoute
from pydantic import SecretStr
from sqlalchemy import text

from api.app import create_app
from api.http.access import Rule, rules_of
from services.domain.identity import SCOPES
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod
from tests.support.factories import a_body
from tests.support.waiting import rows

ADMIN = {"x-api-key": "the-api-key"}
OWN, FOREIGN = "team-bot", "other-bot"
BOUND = ["team-*"]
METADATA = "/.well-known/oauth-protected-resource/agents"
PUBLIC = {"/health/live", "/health/ready", "/metrics", "/asyncapi", "/openapi.json"}
SCHEMA = {"/schema", "/schema/{path}", "/schema/openapi.json"}
# A stream that starts would not end.
LIMIT = aiohttp.ClientTimeout(total=10)
Operation = tuple[str, str]


@dataclass(frozen=True)
class Subject:
    """An agent with production and a preview, a parked message and a webhook of it, and a key."""

    name: str
    agent_id: str
    parked_id: str
    key_id: str
    webhook_id: str
    pod_url: str

    def path(self, method: str, template: str) -> str:
        """The path of an operation on this subject."""
        filled = template.format(
            agent_id=self.agent_id,
            name=self.name,
            deployment_id=f"{self.name}-v2",
            parked_id=self.parked_id,
            key_id=self.key_id,
            webhook_id=self.webhook_id,
        )
        is_stream = method == "GET" and filled.endswith("/events")
        return f"{filled}?follow=false&since=oldest" if is_stream else filled


# The bodies of the operations that need one.
BODIES: dict[Operation, Callable[[Subject], Any]] = {
    ("POST", "/agents/register"): lambda subject: a_body(
        subject.name, deployment_id=f"{subject.name}-v3", acp_url=subject.pod_url
    ),
    ("POST", "/agents/deregister"): lambda subject: {
        "name": subject.name,
        "deployment_id": f"{subject.name}-v2",
        "instance_id": "pod-1",
    },
    ("POST", "/agents/register-build"): lambda subject: {"name": subject.name},
    ("PATCH", "/agents/{agent_id}"): lambda _: {"description": "changed"},
    ("POST", "/agents/{agent_id}/deployments"): lambda _: {"docker_image": "bot:9"},
    ("POST", "/agents/{agent_id}/rpc"): lambda _: {"jsonrpc": "2.0", "id": 1, "method": "m"},
    ("POST", "/agents/name/{name}/rpc"): lambda _: {"jsonrpc": "2.0", "id": 1, "method": "m"},
    ("POST", "/agents/{agent_id}/deployments/{deployment_id}/rpc"): lambda _: {"jsonrpc": "2.0", "id": 1},
    ("POST", "/agents/{agent_id}/rollback"): lambda _: {"to": "legacy"},
    ("POST", "/keys"): lambda _: {"name": f"new-{uuid4().hex[:8]}", "scopes": ["read"]},
    ("POST", "/keys/{key_id}/rotate"): lambda _: {"overlap_seconds": 60},
    ("POST", "/webhooks"): lambda subject: {"url": f"{subject.pod_url}/hook", "agent": subject.name},
    ("POST", "/webhooks/{webhook_id}/rotate"): lambda _: {"overlap_seconds": 60},
    ("POST", "/webhooks/{webhook_id}/resume"): lambda _: {},
    ("POST", "/webhooks/{webhook_id}/replay"): lambda _: {"since": "2026-01-01T00:00:00Z"},
}
# Last, since other operations need what they remove.
REMOVALS = ("DELETE",)


def rules() -> dict[Operation, Rule]:
    """The rule of each operation of the API that is not public."""
    app = create_app(Settings(secret_key=SecretStr("s"), database_url=SecretStr("postgresql://h/d")))
    found = {(method, path): rule for (path, method), rule in rules_of(app.routes).items() if not rule.is_public}
    return dict(sorted(found.items(), key=lambda each: (each[0][0] in REMOVALS, "deployments" not in each[0][1])))


def test_every_route_has_a_rule() -> None:
    """G71: each handler declares who may call it; only health, metrics, documents and OAuth metadata are public.

    Pages of the console check the session of a browser instead.
    """
    app = create_app(Settings(secret_key=SecretStr("s"), database_url=SecretStr("postgresql://h/d")))
    public = set()
    for route in app.routes:
        assert isinstance(route, HTTPRoute), route
        for handler in route.route_handlers:
            rule = handler.opt.get("access")
            assert isinstance(rule, Rule), f"{route.path} has no rule"
            if rule.is_public:
                public.add(route.path_format)
    named = ("{agent_id}", "name/{name}", "{agent_id}/deployments/{deployment_id}")
    metadata = {f"{METADATA}/{which}/rpc" for which in named}
    pages = {path for path in public if path == "/" or path.startswith("/console")}
    assert public - pages == PUBLIC | SCHEMA | metadata


@pytest_asyncio.fixture
async def keyed(serve: Serve) -> Api:
    """An API with a key, which every request must send."""
    return await serve(api_key=SecretStr(ADMIN["x-api-key"]), auth_failures_per_minute=10_000)


@pytest_asyncio.fixture
async def subjects(keyed: Api, pod: Pod, sessions: Sessions) -> AsyncIterator[tuple[Subject, Subject]]:
    """An agent that the bound keys are for, and another one."""
    yield await a_subject(keyed, pod, sessions, OWN), await a_subject(keyed, pod, sessions, FOREIGN)


async def a_subject(api: Api, pod: Pod, sessions: Sessions, name: str) -> Subject:
    """Announce an agent, park a message of it, and make a key."""
    for version in ("v1", "v2"):
        body = a_body(name, deployment_id=f"{name}-{version}", acp_url=pod.url)
        agent = (await api.post("/agents/register", body, headers=ADMIN)).json
    parked_id = uuid4()
    park = text(
        "INSERT INTO parked (id, key, agent_name, reason, error, routing_key, headers, body) "
        "VALUES (:id, :key, :name, 'malformed', 'e', :routing_key, '{}', '[]')"
    )
    values = {"id": parked_id, "key": str(parked_id), "name": name, "routing_key": f"agent.{name}"}
    await in_transaction(sessions, lambda session: session.execute(park, values))
    key_id = (await a_key(api, ["read"], name=f"spare-{name}"))[1]
    hook = await api.post("/webhooks", {"url": f"{pod.url}/hook", "agent": name}, headers=ADMIN)
    return Subject(name, agent["id"], str(parked_id), key_id, hook.json["id"], pod.url)


async def a_key(api: Api, scopes: list[str], *, name: str, **more: Any) -> tuple[dict[str, str], str]:
    """The header with the secret of a new key, and the key's id."""
    answer = await api.post("/keys", {"name": name, "scopes": scopes, **more}, headers=ADMIN)
    assert answer.status == 200, answer.body
    return {"x-api-key": answer.json["secret"]}, answer.json["id"]


async def call(api: Api, operation: Operation, subject: Subject, headers: dict[str, str]) -> Answer:
    """One operation on this subject."""
    method, template = operation
    body = BODIES.get(operation)
    options = {"json": body(subject)} if body else {}
    return await api.call(method, subject.path(method, template), headers=headers, timeout=LIMIT, **options)


async def prepare(api: Api, operation: Operation, subject: Subject) -> None:
    """Announce the agent again before what its name is needed for, since it was deleted by id before."""
    if operation[0] == "DELETE" and "{name}" in operation[1]:
        body = a_body(OWN, acp_url=subject.pod_url)
        assert (await api.post("/agents/register", body, headers=ADMIN)).status == 200


def reason_of(answer: Answer) -> str:
    """The stable reason of a refusal; empty for any other answer."""
    if answer.status < 400 or not answer.body:
        return ""
    error = answer.json
    return str(error["error"]["data"]["reason"] if "error" in error else error["type"].rpartition(":")[2])


async def test_without_a_valid_key_nothing_is_told(keyed: Api, subjects: tuple[Subject, Subject]) -> None:
    """G71: 401 on every route that is not public, whatever the path names."""
    for operation in rules():
        for headers in ({}, {"x-api-key": "podium_unknown"}, {"x-agent-api-key": "pak_" + "0" * 64}):
            answer = await call(keyed, operation, subjects[0], headers)
            assert answer.status == 401, (operation, answer.body)
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scope", SCOPES)
async def test_what_each_scope_opens(keyed: Api, subjects: tuple[Subject, Subject], scope: str) -> None:
    """G71: a route answers a key with one of its scopes, or with `admin`, and refuses any other with 403."""
    headers, _ = await a_key(keyed, [scope], name="under-test")
    for operation, rule in rules().items():
        await prepare(keyed, operation, subjects[0])
        answer = await call(keyed, operation, subjects[0], headers)
        if scope == "admin" or scope in rule.scopes:
            assert answer.status not in {401, 403, 404, 500}, (operation, answer.body)
        else:
            assert reason_of(answer) in {"insufficient-scope", ""}, (operation, answer.body)
            assert answer.status == 403, (operation, answer.body)
            assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


async def test_a_bound_key_and_the_agents_of_others(
    keyed: Api, subjects: tuple[Subject, Subject], sessions: Sessions
) -> None:
    """G72: a key for some agents gets 404 for others, finds none of them in lists and streams, and changes none."""
    headers, _ = await a_key(keyed, list(SCOPES), name="under-test", agents=BOUND)
    before = await everything(sessions)
    for operation, rule in rules().items():
        answer = await call(keyed, operation, subjects[1], headers)
        if rule.agents == "all":
            assert reason_of(answer) == "all-agents-needed", (operation, answer.body)
        elif "{" in operation[1] or operation in BODIES:
            expected = 204 if operation[0] == "OPTIONS" else 404
            assert answer.status == expected, (operation, answer.body)
        else:
            assert answer.status in {200, 204}, (operation, answer.body)
        for told in (FOREIGN, subjects[1].agent_id):
            assert told.encode() not in answer.body, (operation, answer.body)
    assert await everything(sessions) == before


async def test_a_bound_key_and_its_own_agents(keyed: Api, subjects: tuple[Subject, Subject]) -> None:
    """G72: it is served as a key for all agents is, and its lists contain its agents."""
    headers, _ = await a_key(keyed, list(SCOPES), name="under-test", agents=BOUND)
    for operation, rule in rules().items():
        if rule.agents == "all":
            continue
        await prepare(keyed, operation, subjects[0])
        answer = await call(keyed, operation, subjects[0], headers)
        assert answer.status not in {401, 403, 404, 500}, (operation, answer.body)
        if operation[0] == "GET" and "{" not in operation[1]:
            assert OWN.encode() in answer.body, operation


async def test_the_own_key_of_an_agent(keyed: Api, subjects: tuple[Subject, Subject], sessions: Sessions) -> None:
    """G72: it registers and reads that agent, and nothing else."""
    own, foreign = subjects
    secret = (
        await keyed.post("/agents/register", a_body(OWN, deployment_id=f"{OWN}-v1", acp_url=own.pod_url), headers=ADMIN)
    ).json
    headers = {"x-agent-api-key": secret["agent_api_key"]}
    before = await everything(sessions)
    for operation, rule in rules().items():
        assert (await call(keyed, operation, foreign, headers)).status == 401, operation
        if not rule.agent_key:
            assert (await call(keyed, operation, own, headers)).status == 401, operation
    assert await everything(sessions) == before
    allowed = {operation for operation, rule in rules().items() if rule.agent_key}
    for operation in allowed:
        assert (await call(keyed, operation, own, headers)).status == 200, operation
    assert {method for method, _ in allowed} == {"GET", "POST"}
    assert {path for method, path in allowed if method == "POST"} == {"/agents/register", "/agents/deregister"}


async def test_the_openapi_document_names_the_scopes(keyed: Api) -> None:
    """G71: as `x-podium-scopes`, and in the description."""
    document = (await keyed.get("/openapi.json")).json
    for (method, path), rule in rules().items():
        described = document["paths"].get(path, {}).get(method.lower())
        if described is None:
            assert method == "OPTIONS"
            continue
        assert described["x-podium-scopes"] == list(rule.scopes)
        assert all(f"`{scope}`" in described["description"] for scope in rule.scopes)


async def everything(sessions: Sessions) -> list[Any]:
    """What is stored, without the times of last use."""
    tables = ("agents", "deployments", "promotions", "registrations", "parked", "audit", "instances", "webhooks")
    found: list[Any] = [await rows(sessions, f"SELECT to_jsonb({table}) FROM {table} ORDER BY 1") for table in tables]
    return [*found, await rows(sessions, "SELECT id, secret_sha256, revoked_at FROM keys ORDER BY id")]
