"""An operator's commands in order, with a real API, worker and broker."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from aio_pika.abc import AbstractConnection

from services.settings import Settings
from tests.integration.api.pods import Pod, running_pod
from tests.integration.cli.terminal import Terminal
from tests.support.processes import api_process, worker_process


@pytest_asyncio.fixture
async def operator(
    settings: Settings,
    broker: AbstractConnection,  # noqa: ARG001 - declares the topology
    tmp_path: Path,
) -> AsyncIterator[Terminal]:
    """A shell without variables, in a directory with the addresses that `podium up` writes."""
    async with api_process(settings, tmp_path) as url, worker_process(settings, tmp_path, "registrar"):
        (tmp_path / ".podium").mkdir()
        (tmp_path / ".podium" / "podium.env").write_text(
            f"PODIUM_API_URL={url}\nPODIUM_AMQP_URL={settings.amqp_url.get_secret_value()}\n"
        )
        yield Terminal(tmp_path)


@pytest_asyncio.fixture
async def pod() -> AsyncIterator[Pod]:
    """A pod with the same answer to every call."""
    async with running_pod() as pod:
        yield pod


async def test_from_announcement_to_rollback(operator: Terminal, pod: Pod) -> None:
    """Register, list, wait, promote, call, roll back, and read the ledger."""
    origin, _, port = pod.url.rpartition(":")
    variables = {"AGENT_NAME": "bot", "ACP_URL": origin, "ACP_PORT": port, "GIT_BRANCH": "main"}
    announced = await operator.done("register", AGENTEX_DEPLOYMENT_ID="v1", AGENT_COMMIT_SHA="abc", **variables)
    assert announced.out == f"Announced bot v1 at {pod.url}, confirmed by the broker.\n"
    await operator.done("deployments", "wait", "v1", "--for", "production", "--timeout", "20s")
    # The wait starts before the pod is announced.
    waiting = await operator.started("promote", "bot", "v2", "--wait", "20s", "--reason", "looks good", "--json")
    await operator.done("register", "--name", "bot", "--deployment", "v2", "--acp-url", pod.url, "--image", "bot:2")
    out, err = await waiting.communicate()
    assert waiting.returncode == 0, err
    promoted = json.loads(out)
    assert (promoted["changed"], promoted["deployment_id"], promoted["generation"]) == (True, "v2", 2)
    assert promoted["previous"] == {"deployment_id": "v1", "acp_url": pod.url}

    listed = (await operator.quick("deployments", "bot", "--json")).json
    assert [(each["id"], each["is_production"]) for each in listed] == [("v2", True), ("v1", False)]
    assert listed[1]["registration_metadata"]["commit_sha"] == "abc"
    again = await operator.quick("promote", "bot", "v2")
    assert again.out == "Nothing changed: v2 already serves bot (generation 2).\n"

    back = await operator.quick("rollback", "bot", "--if-generation", "2")
    assert back.out == "bot: v1 serves now, v2 served before (generation 3).\n"
    assert "paused" in back.err

    set_now = await operator.quick(
        "agents", "set", "bot", "--resume", "--on-failure", "rollback", "--probe-interval", "5m"
    )
    assert "on failure     rollback\n" in set_now.out
    assert "probes         every 5m\n" in set_now.out
    assert "paused" not in set_now.out
    unset = await operator.quick(
        "agents", "set", "bot", "--probe-interval", "default", "--probe-threshold", "2", "--json"
    )
    assert (json.loads(unset.out)["probe_interval_seconds"], json.loads(unset.out)["probe_threshold"]) == (None, 2)

    history = (await operator.quick("history", "bot")).out
    assert [line.split()[-1] for line in history.splitlines()] == ["GENERATION", "3", "2", "1"]
    assert "promoted: looks good" in history
    then = await operator.quick("history", "bot", "--at", listed[0]["promoted_at"])
    assert len(then.out.splitlines()) == 2
    assert " v2 " in then.out
    assert "so far" not in then.out
    before = await operator.quick("history", "bot", "--at", "2000-01-01T00:00:00Z")
    assert (before.code, before.out) == (4, "")
    assert before.error.startswith("Nothing served this agent at 2000-01-01T00:00:00Z: its first generation began at ")

    called = await operator.done("rpc", "bot", "--deployment", "v2", "message/send", '{"n": 1}')
    assert json.loads(called.out)["result"] == "ok"
    assert json.loads(pod.seen[-1].body) == {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"n": 1}}
    assert (await operator.quick("deployments", "delete", "v2", "-q")).out == "v2\n"
    assert (await operator.quick("agents", "-q")).out == "bot\n"
    outcomes = (await operator.quick("registrations", "--agent", "bot", "--json")).json
    assert [(row["deployment_id"], row["outcome"]) for row in outcomes] == [("v2", "Registered"), ("v1", "Registered")]
