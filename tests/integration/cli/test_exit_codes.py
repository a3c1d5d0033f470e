"""Failures of commands: one line with the next step, and an exit code."""

import asyncio
from uuid import UUID

from aiohttp import web
from pydantic import SecretStr

from services.api_keys import agent_api_key
from services.settings import Settings
from tests.integration.api.client import Api, running_api
from tests.integration.api.pods import pausing, refused_address, running_pod
from tests.integration.cli.terminal import Ran, Terminal

FAILED, USAGE, TIMED_OUT, NOT_FOUND, CONFLICT, UNAVAILABLE = 1, 2, 3, 4, 5, 6


async def fails(terminal: Terminal, command: str, code: int, *words: str, **variables: str) -> Ran:
    """Run a command that must fail with this code, and with these words in its message."""
    ran = await terminal.quick(*command.split(), **variables)
    assert (ran.code, ran.out) == (code, ""), ran
    for word in words:
        assert word in ran.error
    return ran


async def test_each_kind_of_failure_has_its_code(api: Api, terminal: Terminal) -> None:
    """Wrong usage, missing objects, conflicts, and timeouts."""
    agent = await api.register("bot", "v1")
    await api.post(f"/agents/{agent['id']}/deployments", {"id": "v2", "docker_image": "bot:2"})
    await api.register("bot", "v0")
    await api.delete(f"/agents/{agent['id']}/deployments/v0")
    for command, code, words in [
        ("promote bot", USAGE, "--yes"),
        ("agents --nonsense", USAGE, "--nonsense"),
        ("agents Not_A_Name", USAGE, "Not_A_Name"),
        ("agents --api-url localhost:1", USAGE, "http://"),
        ("agents nobody", NOT_FOUND, "podium registrations --agent nobody"),
        ("deployments show v9", NOT_FOUND, "podium registrations"),
        ("promote bot v0", NOT_FOUND, "deleted"),
        ("promote bot v2", CONFLICT, "Pending"),
        ("promote bot v2 --if-generation 7", CONFLICT, "generation 1, not 7"),
        ("rollback bot", CONFLICT, "promote"),
        ("deployments delete v1", CONFLICT, "promote another one first"),
        ("deployments wait v2 --timeout 0.2s", TIMED_OUT, "it is Pending"),
        ("deployments wait v9 --timeout 0.2s", TIMED_OUT, "no pod has announced it"),
    ]:
        await fails(terminal, command, code, words)


async def test_an_unavailable_api_and_another_server_have_different_codes(terminal: Terminal) -> None:
    """The first is worth another attempt; the second is a wrong address."""
    async with refused_address() as unavailable, running_pod(plain_page) as other_server:
        await fails(terminal, "agents", UNAVAILABLE, "podium up", PODIUM_API_URL=unavailable)
        await fails(terminal, "agents", FAILED, "--api-url", PODIUM_API_URL=other_server.url)


async def plain_page(_: web.BaseRequest) -> web.StreamResponse:
    """The response of a server that is not Podium."""
    return web.Response(text="<html>", content_type="text/html")


async def test_an_api_with_a_key_requires_it(settings: Settings, terminal: Terminal) -> None:
    """From the variable or the option. A pod can register again with its own key."""
    async with running_api(settings.model_copy(update={"api_key": SecretStr("the key")})) as api:
        given = {"PODIUM_API_URL": api.url, "PODIUM_API_KEY": "the key"}
        await fails(terminal, "agents", FAILED, "PODIUM_API_KEY", PODIUM_API_URL=api.url)
        assert (await terminal.quick("agents", **given)).code == 0
        assert (await terminal.quick("agents", "--api-url", api.url, "--api-key", "the key")).code == 0
        announce = ["register", "--http", "--api-url", api.url, "--name", "bot", "--acp-url", "http://10.0.0.7:8000"]
        assert (await terminal.quick(*announce)).code == FAILED
        assert (await terminal.quick(*announce, "--api-key", "the key")).code == 0
        secret = settings.secret_key.get_secret_value()
        pods_own = agent_api_key(secret, UUID((await terminal.quick("agents", "bot", "--json", **given)).json["id"]))
        assert (await terminal.quick(*announce, AGENT_API_KEY=pods_own)).code == 0


async def test_errors_of_the_agent_and_of_the_gateway_have_different_codes(api: Api, terminal: Terminal) -> None:
    """An error from the agent is 1; an agent that cannot be reached is 6."""

    async def in_pieces(request: web.BaseRequest) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await stream.prepare(request)
        await stream.write(b'{"result": 1}\n')
        await stream.write(b'{"error": {"code": -1, "message": "no \\u001b[31m such tool"}}\n')
        return stream

    async with running_pod(in_pieces) as pod, refused_address() as away:
        await api.register("bot", "v1", acp_url=pod.url)
        await api.register("gone", "g1", acp_url=away)
        answered = await terminal.run("rpc", "bot", "message/stream")
        assert (answered.code, len(answered.out.splitlines())) == (FAILED, 2)
        assert answered.error == "The agent answered with an error: no  [31m such tool"
        refused = await terminal.run("rpc", "gone", "--body", "-", stdin='{"id": 7, "method": "x"}')
        assert (refused.code, '"id":7' in refused.out) == (UNAVAILABLE, True)


async def test_an_answer_is_printed_as_it_arrives(api: Api, terminal: Terminal) -> None:
    """The first part is printed while the agent still works on the second."""
    go_on = asyncio.Event()
    async with running_pod(pausing(b"first\n", go_on, b"second")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        process = await terminal.started("rpc", "bot", "x")
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"first\n"
            go_on.set()
            assert await process.stdout.read() == b"second"
            assert await process.wait() == 0


async def test_an_answer_that_ends_early_is_a_failure(api: Api, terminal: Terminal) -> None:
    """What arrived is printed; the message says that the answer is not complete."""

    async def breaks(request: web.BaseRequest) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        await stream.write(b'{"result":')
        assert request.transport is not None
        request.transport.abort()
        return stream

    async with running_pod(breaks) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        ran = await terminal.run("rpc", "bot", "x")
        assert (ran.code, ran.out) == (FAILED, '{"result":')
        assert "check before you repeat" in ran.error
