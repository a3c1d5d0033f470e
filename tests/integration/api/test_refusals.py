"""Every refusal is a problem document with a stable type and a sentence, never a 500."""

import asyncio
import io
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from contracts.messages import REGISTRATION_MAX_BYTES
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import refused_address
from tests.support.factories import a_body
from tests.support.waiting import rows

HUGE_NUMBER = "1" + "0" * 30


def urls(agent: dict[str, Any]) -> tuple[str, str]:
    """The paths of an agent and of its deployments."""
    return f"/agents/{agent['id']}", f"/agents/{agent['id']}/deployments"


async def test_unknown_agents_and_deployments(api: Api) -> None:
    """404 for unknown and malformed ids, on every route."""
    agent, deployments = urls(await api.register("bot", "v1"))
    for unknown in (str(uuid4()), "no-uuid", "%00", "{" + str(uuid4()) + "}", uuid4().hex):
        for method, suffix in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/deployments"),
            ("GET", "/deployments/v1"),
            ("DELETE", "/deployments/v1"),
            ("POST", "/deployments/v1/promote"),
            ("POST", "/rollback"),
            ("GET", "/promotions"),
        ):
            answer = await api.call(method, f"/agents/{unknown}{suffix}")
            answer.problem(404, "agent-not-found")
    for unknown in ("nope", "a%00b", "-", "x" * 129, "%F0%9F%A6%8A"):
        (await api.get(f"{deployments}/{unknown}")).problem(404, "deployment-not-found")
        (await api.delete(f"{deployments}/{unknown}")).problem(404, "deployment-not-found")
        (await api.post(f"{deployments}/{unknown}/promote")).problem(404, "deployment-not-found")
    for name in ("nobody", "Bad_Name", "a%00b", "x" * 64):
        (await api.get(f"/agents/name/{name}")).problem(404, "agent-not-found")
        (await api.delete(f"/agents/name/{name}")).problem(404, "agent-not-found")
    assert (await api.get(agent)).status == 200


async def test_deployments_of_other_agents_are_not_found(api: Api) -> None:
    """404 for a deployment of another agent, so that its existence is not revealed."""
    await api.register("other", "v1")
    _, deployments = urls(await api.register("bot", "v2"))
    (await api.get(f"{deployments}/v1")).problem(404, "deployment-not-found")
    (await api.delete(f"{deployments}/v1")).problem(404, "deployment-not-found")
    (await api.post(f"{deployments}/v1/promote")).problem(404, "deployment-not-found")


async def test_conflicts(api: Api, sessions: Sessions) -> None:
    """409 names the conflict; a rejected registration changes nothing and is in the inbox with its reason."""
    agent, deployments = urls(await api.register("bot", "v1", docker_image="image:1"))
    await api.register("other", "o1")
    before = (await api.get(agent)).json
    refusals = [
        (a_body("bot", deployment_id="v1", docker_image="image:2"), "image-conflict"),
        (a_body("bot", deployment_id="o1"), "deployment-of-another-agent"),
        (a_body("bot", deployment_id="v2", agent_id=str(uuid4())), "agent-id-mismatch"),
    ]
    for body, reason in refusals:
        (await api.post("/agents/register", body)).problem(409, reason)
    assert (await api.get(agent)).json == before
    entries = await rows(sessions, "SELECT reason FROM registrations WHERE outcome = 'Rejected' ORDER BY seq")
    assert len(entries) == len(refusals)
    assert all(entry.reason for entry in entries)

    pending = (await api.post(deployments, {"docker_image": "i:1"})).json["id"]
    (await api.post(f"{deployments}/{pending}/promote")).problem(409, "deployment-not-ready")
    (await api.delete(f"{deployments}/v1")).problem(409, "production-cannot-be-deleted")
    (await api.post(f"{agent}/rollback")).problem(409, "nothing-to-roll-back-to")
    conflict = await api.post(deployments, {"id": "v1", "docker_image": "image:2"})
    conflict.problem(409, "image-conflict")
    (await api.post(deployments, {"id": "o1", "docker_image": "i"})).problem(409, "deployment-of-another-agent")


async def test_what_was_deleted_is_gone(api: Api) -> None:
    """410, and nothing is restored; reading and repeated deletion still work."""
    agent, deployments = urls(await api.register("bot", "v1"))
    await api.register("bot", "v2")
    assert [(await api.delete(f"{deployments}/v2")).status for _ in range(2)] == [200, 200]
    (await api.post(f"{deployments}/v2/promote")).problem(410, "deployment-deleted")
    (await api.post("/agents/register", a_body("bot", deployment_id="v2"))).problem(410, "deployment-deleted")
    (await api.post(deployments, {"id": "v2", "docker_image": "i"})).problem(410, "deployment-deleted")
    assert (await api.get(f"{deployments}/v2")).json["expires_at"]
    assert [each["id"] for each in (await api.get(deployments)).json] == ["v1"]

    assert [(await api.delete(agent)).status for _ in range(2)] == [200, 200]
    (await api.post(f"{deployments}/v1/promote")).problem(410, "agent-deleted")
    (await api.post(f"{agent}/rollback")).problem(410, "agent-deleted")
    (await api.post(deployments, {"docker_image": "i"})).problem(410, "agent-deleted")
    (await api.call("PATCH", agent, json={"description": "d"})).problem(410, "agent-deleted")
    (await api.get("/agents/name/bot")).problem(404, "agent-not-found")
    (await api.delete("/agents/name/bot")).problem(404, "agent-not-found")
    deleted = (await api.get(agent)).json
    assert (deleted["status"], deleted["acp_url"]) == ("Deleted", None)
    assert [each["cause"] for each in (await api.get(f"{agent}/promotions")).json] == ["agent_deleted", "first"]


BAD_PAGES = [
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=ten", "limit"),
    (f"limit={HUGE_NUMBER}", "limit"),
    ("page_number=0", "page_number"),
    ("page_number=-1", "page_number"),
    (f"page_number={HUGE_NUMBER}", "page_number"),
    (f"page_number={'9' * 5000}", "page_number"),
    ("page_number=9223372036854775807", "page_number"),
    ("order_by=password", "order_by"),
    ("order_by=%00", "order_by"),
    ("order_by=", "order_by"),
    ("order_direction=sideways", "order_direction"),
    ("order_direction=%00", "order_direction"),
]


async def test_bad_pages_and_orders(api: Api, subtests: pytest.Subtests) -> None:
    """400 names the parameter."""
    _, deployments = urls(await api.register("bot", "v1"))
    for query, field in BAD_PAGES:
        with subtests.test(query[:100]):
            (await api.get(f"/agents?{query}")).problem(400, "invalid-request", field)
            (await api.get(f"{deployments}?{query}")).problem(400, "invalid-request", field)


BAD_CURSORS = ["after=nobody", "after=%00", "after=", "after=1"]


async def test_bad_cursors(api: Api, subtests: pytest.Subtests) -> None:
    """400 names the parameter."""
    for query in BAD_CURSORS:
        with subtests.test(query):
            (await api.get(f"/agents?{query}")).problem(400, "invalid-request", "after")


BAD_TIMES = ["yesterday", "%00", "2026-01-31T12:00:00", "99999-01-01T00:00:00Z", ""]


async def test_bad_times(api: Api, subtests: pytest.Subtests) -> None:
    """A time without a time zone is invalid."""
    agent, _ = urls(await api.register("bot", "v1"))
    for at in BAD_TIMES:
        with subtests.test(at):
            (await api.get(f"{agent}/promotions?at={at}")).problem(400, "invalid-request", "at")


JSON = {"content-type": "application/json"}
DEEP = b"[" * 40 + b"]" * 40
BAD_REGISTRATIONS = [
    (
        b'{"name": "bot", "acp_url": "http://a:1", "registration_metadata": {"n": ' + DEEP + b"}}",
        "registration_metadata",
    ),
    (b"", None),
    (b"{", None),
    (b"null", None),
    (b"[]", None),
    (b'"text"', None),
    (b'{"name": "bot", "acp_url": "http://a:1", }', None),
    (b'{"name": "bot", "acp_url": "http://a:1", "description": NaN}', "description"),
    (b'{"name": "bot", "acp_url": "http://a:1", "description": "\\u0000"}', "description"),
    (b'{"name": "bot", "acp_url": "http://a:1", "description": "\\ud800"}', None),
    (b'{"name": "bot", "acp_url": "http://a:1", "description": "\xff"}', None),
    (b'{"name": "bot", "acp_url": "http://a:1", "description": 1}', "description"),
    (b'{"name": "bot", "acp_url": "http://a:1", "agent_id": "\\u0000"}', "agent_id"),
    (b'{"acp_url": "http://a:1"}', "name"),
    (b'{"name": "Bot", "acp_url": "http://a:1"}', "name"),
    (b'{"name": "bot\\n", "acp_url": "http://a:1"}', "name"),
    (b'{"name": "", "acp_url": "http://a:1"}', "name"),
    (b'{"name": "bot"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "ftp://a:1"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://u:p@a:1"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://a:0"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://a:99999"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://a:1?x=1"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://a b"}', "acp_url"),
    (b'{"name": "bot", "acp_url": "http://a", "acp_type": "psychic"}', "acp_type"),
    (b'{"name": "bot", "acp_url": "http://a", "registration_metadata": []}', "registration_metadata"),
    (
        b'{"name": "bot", "acp_url": "http://a", "registration_metadata": {"deployment_id": "a b"}}',
        "registration_metadata.deployment_id",
    ),
    (
        b'{"name": "bot", "acp_url": "http://a", "registration_metadata": {"x": ["\\u0000"]}}',
        "registration_metadata",
    ),
    (b'{"name": "bot", "acp_url": "http://a", "registration_metadata": {"x": 1e999}}', "registration_metadata"),
    (b'{"name": "bot", "acp_url": "http://a", "registration_metadata": {"x": ' + b"9" * 5000 + b"}}", None),
    (b'{"name": "bot", "acp_url": "http://a", "registration_metadata": ' + b'{"x":' * 5000 + b"1", None),
]


async def test_bad_registrations(api: Api, subtests: pytest.Subtests) -> None:
    """400 names the field if there is one, and no agent is created."""
    for body, field in BAD_REGISTRATIONS:
        with subtests.test(body=body[:200]):
            for path in ("/agents/register", "/agents/register-build"):
                if path.endswith("build") and field in {"acp_url", "agent_id", "registration_metadata.deployment_id"}:
                    continue
                answer = await api.call("POST", path, data=body, headers=JSON)
                answer.problem(400, "invalid-request", field)
    assert (await api.get("/agents")).json == []


async def test_registrations_are_read_leniently_where_nothing_is_lost(api: Api) -> None:
    """Unknown fields are accepted; numbers are returned unchanged."""
    body = b'{"name": "bot", "acp_url": "http://A:1", "who": "knows", "registration_metadata": {"deployment_id": "v1",'
    body += b'"big": 123456789012345678901234567890, "nested": {"a": [1, null, "\xc3\xa9"]}, "dup": 1, "dup": 2}}'
    answer = await api.call("POST", "/agents/register", data=body, headers=JSON)
    assert answer.status == 200, answer.body
    agent = (await api.get("/agents/name/bot")).json
    assert agent["acp_url"] == "http://A:1"
    deployment = (await api.get(f"/agents/{agent['id']}/deployments/v1")).json
    assert deployment["registration_metadata"] == {
        "deployment_id": "v1",
        "big": 123456789012345678901234567890,
        "nested": {"a": [1, None, "é"]},
        "dup": 2,
    }


async def test_too_large_bodies(api: Api) -> None:
    """413 with or without Content-Length, before the body is read completely."""
    large = b'{"name": "bot", "description": "' + b"x" * 5 * 1024 * 1024 + b'"}'

    async def in_chunks() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for data in (io.BytesIO(large), in_chunks()):
        (await api.call("POST", "/agents/register", data=data, headers=JSON)).problem(413, "message-too-large")
    host, port = api.host_and_port
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /agents/register HTTP/1.1\r\nHost: {host}\r\nContent-Length: {REGISTRATION_MAX_BYTES + 1}\r\n\r\n"
    writer.write(head.encode())  # without any byte of the body
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


BAD_COMMANDS = [
    ("PATCH", "", b'{"owner": "me"}', "owner"),
    ("PATCH", "", b'{"auto_promote": "sometimes"}', "auto_promote"),
    ("PATCH", "", b'{"auto_promote_paused": "yes"}', "auto_promote_paused"),
    ("PATCH", "", b'{"description": "\\u0000"}', "description"),
    ("PATCH", "", b"", None),
    ("POST", "/deployments", b"{}", "docker_image"),
    ("POST", "/deployments", b'{"docker_image": "a b"}', "docker_image"),
    ("POST", "/deployments", b'{"docker_image": "i", "id": "a/b"}', "id"),
    ("POST", "/deployments", b'{"docker_image": "i", "sgp_deploy_id": "\\u0000"}', "sgp_deploy_id"),
    ("POST", "/deployments", b'{"docker_image": "i", "helm_release_name": 1}', "helm_release_name"),
    (
        "POST",
        "/deployments",
        b'{"docker_image": "i", "registration_metadata": {"\\u0000": 1}}',
        "registration_metadata",
    ),
    ("POST", "/deployments/v1/promote", b'{"reason": "\\u0000"}', "reason"),
    ("POST", "/deployments/v1/promote", b'{"reason": 1}', "reason"),
    ("POST", "/deployments/v1/promote", b"{", None),
    ("POST", "/rollback", b'{"to": "a b"}', "to"),
    ("POST", "/rollback", b'{"reason": "' + b"x" * 2001 + b'"}', "reason"),
]


async def test_bad_commands(api: Api, subtests: pytest.Subtests) -> None:
    """400 names the field, and nothing changes."""
    agent, _ = urls(await api.register("bot", "v1"))
    before = (await api.get(agent)).json
    for method, path, body, field in BAD_COMMANDS:
        with subtests.test(body=body[:200]):
            (await api.call(method, f"{agent}{path}", data=body, headers=JSON)).problem(400, "invalid-request", field)
            assert (await api.get(agent)).json == before


async def test_methods_and_paths_that_do_not_exist(api: Api) -> None:
    """405 lists the methods of the path; 404 for unknown paths."""
    answer = await api.call("PUT", "/agents")
    answer.problem(405, "method-not-allowed")
    assert "GET" in answer.headers["allow"]
    for path in ("/nothing", "/agents/a/b/c/d", "/%00", "/agents/../../etc/passwd"):
        (await api.get(path)).problem(404, "not-found")


async def test_without_database(serve: Serve) -> None:
    """503 with Retry-After, on RPC routes as a JSON-RPC error."""
    async with refused_address() as nowhere:
        database_url = SecretStr(f"{nowhere.replace('http', 'postgresql')}/podium")
        api = await serve(database_url=database_url)
        agent = f"/agents/{uuid4()}"
        calls = [
            await api.get("/agents"),
            await api.get(agent),
            await api.post("/agents/register", a_body("bot")),
            await api.post(f"{agent}/deployments/v1/promote"),
            await api.post(f"{agent}/rollback"),
            await api.delete(agent),
        ]
        for answer in calls:
            answer.problem(503, "database-unavailable")
            assert int(answer.headers["retry-after"]) > 0
        rpc = await api.post(f"{agent}/rpc", {"jsonrpc": "2.0", "id": 7, "method": "m"})
        assert rpc.rpc_error(503, "database-unavailable")["id"] == 7
        assert int(rpc.headers["retry-after"]) > 0


async def test_defects_leak_nothing(api: Api, sessions: Sessions) -> None:
    """500 without internal details."""
    async with sessions.begin() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("ALTER TABLE agents RENAME TO agents_away")
    answer = await api.get("/agents")
    answer.problem(500, "internal")
    assert b"agents_away" not in answer.body
    assert b"SELECT" not in answer.body
    assert b"relation" not in answer.body
