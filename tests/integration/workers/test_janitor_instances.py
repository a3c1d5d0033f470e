"""Instances and running workers: announced, probed, deregistered, and rolled back from when the last one has gone."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection

from podium.servers.ports import free_ports
from services.agents.commands import AgentChange, change_agent
from services.domain.caller import Caller
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.pods import running_pod
from tests.integration.workers.conftest import working
from tests.integration.workers.test_janitor import a_switchable_pod, eager, status_is
from tests.support.factories import a_goodbye, incoming
from tests.support.processes import ROOT, environment
from tests.support.waiting import eventually_rows, rows
from workers.runner import run_janitor, run_relay

__all__ = ["eager"]

INSTANCES = "SELECT instance_id, status FROM instances WHERE deployment_id = 'v1' ORDER BY instance_id"


async def announce(sessions: Sessions, instance_id: str, url: str, deployment_id: str = "v1") -> None:
    """Announce a pod."""
    message = incoming(deployment_id=deployment_id, instance_id=instance_id, acp_url=url)
    await in_transaction(sessions, lambda session: register_batch(session, [message]))


async def test_a_dead_instance_fails_alone(eager: Settings, sessions: Sessions) -> None:
    """Its sibling keeps the deployment Ready; it comes back by itself."""
    async with a_switchable_pod() as (pod, answer), running_pod() as sibling, working(run_janitor, eager):
        await announce(sessions, "pod-1", pod.url)
        await announce(sessions, "pod-2", sibling.url)
        answer["status"] = 500
        await eventually_rows(sessions, "SELECT 1 FROM instances WHERE instance_id = 'pod-1' AND status = 'Failed'")
        assert await rows(sessions, status_is("Ready"))
        answer["status"] = 200
        await eventually_rows(sessions, "SELECT 1 FROM instances WHERE instance_id = 'pod-1' AND status = 'Ready'")
    types = [row.type for row in await rows(sessions, "SELECT type FROM outbox ORDER BY id")]
    assert types.count("podium.deployment.ready.v1") == 1
    assert types[-2:] == ["podium.instance.failed.v1", "podium.instance.ready.v1"]


async def test_production_is_rolled_back_when_its_last_instance_has_gone(eager: Settings, sessions: Sessions) -> None:
    """Nothing is left that a probe could find, so the goodbye itself leads to the rollback."""
    async with running_pod() as pod, working(run_janitor, eager):
        await announce(sessions, "pod-1", pod.url)
        await announce(sessions, "pod-1", pod.url, "v2")
        [agent] = await rows(sessions, "SELECT id FROM agents")
        change = AgentChange(on_failure="rollback")
        await in_transaction(sessions, lambda session: change_agent(session, agent.id, change, Caller(actor="amy")))
        await in_transaction(sessions, lambda session: promote(session, agent.id, "v2", Caller(actor="test")))
        goodbye = a_goodbye("v2", "pod-1")
        await in_transaction(sessions, lambda session: register_batch(session, [goodbye]))
        await eventually_rows(sessions, "SELECT 1 FROM agents WHERE production_deployment_id = 'v1'")
    [last] = await rows(sessions, "SELECT cause, actor FROM promotions ORDER BY generation DESC LIMIT 1")
    assert (last.cause, last.actor) == ("rollback", "podium")


@pytest.mark.usefixtures("registrar")
async def test_pods_of_one_version_come_and_go(
    broker: AbstractConnection,  # noqa: ARG001 - declares the exchange
    settings: Settings,
    sessions: Sessions,
    tmp_path: Path,
) -> None:
    """Three processes of the example announce themselves; each says goodbye at SIGTERM."""
    ports = free_ports(["pod-1", "pod-2", "pod-3"])
    pods: dict[str, asyncio.subprocess.Process] = {}
    async with working(run_relay, settings):
        for name, port in ports.items():
            env = environment(
                settings,
                AGENT_NAME="support-bot",
                AGENTEX_DEPLOYMENT_ID="v1",
                AGENT_INSTANCE_ID=name,
                ACP_URL="http://127.0.0.1",
                ACP_PORT=str(port),
            )
            with (tmp_path / name).open("wb") as log:
                pods[name] = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "examples.agent_pod", cwd=ROOT, env=env, stdout=log, stderr=log
                )
        try:
            await eventually_rows(sessions, "SELECT 1 FROM instances HAVING count(*) = 3")
            for left, name in ((2, "pod-2"), (1, "pod-1")):
                os.kill(pods[name].pid, signal.SIGTERM)
                assert await asyncio.wait_for(pods[name].wait(), 10) == 0, (tmp_path / name).read_text()
                await eventually_rows(sessions, f"SELECT 1 FROM instances HAVING count(*) = {left}")
                assert await rows(sessions, status_is("Ready"))
            [deployment] = await rows(sessions, "SELECT acp_url FROM deployments")
            assert deployment.acp_url == f"http://127.0.0.1:{ports['pod-3']}"
        finally:
            for pod in pods.values():
                if pod.returncode is None:
                    pod.kill()
                    await pod.wait()
    assert [tuple(row) for row in await rows(sessions, INSTANCES)] == [("pod-3", "Ready")]
