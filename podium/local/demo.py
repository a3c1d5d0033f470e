"""`podium demo`: runs the whole system with a sample agent, shows each step and checks its result."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import SecretStr

from podium.local.log_files import log_of
from podium.local.samples import SAMPLE_AGENT, VERSIONS, program, sample_pod
from podium.local.system import Say, System, running_system
from podium.local.up import interrupted
from podium.servers import ServersError
from podium.servers.ports import LOOPBACK, free_ports
from services.settings import Settings
from services.tls import broker_url
from workers.amqp.connection import CONNECT_SECONDS, open_connection

CONSUMER_QUEUE = "example.consumer"
STEP_TIMEOUT_SECONDS = 20.0
POLL_SECONDS = 0.05


class DemoFailed(ServersError):
    """A step of the demo had another result than expected."""


@dataclass
class Demo:
    """The running system, and how many events were shown."""

    system: System
    client: aiohttp.ClientSession
    say: Say
    events_shown: int = field(default=0)

    def step(self, title: str) -> None:
        """Show the title of the next step."""
        self.say(f"\n{title}")

    async def api(self, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401 - JSON
        """Call the API; return its JSON response."""
        async with self.client.request(method, f"{self.system.api_url}{path}", **options) as response:
            return await response.json(content_type=None)

    async def call(self, path: str) -> str:
        """Send a JSON-RPC call to the agent at this path; return its result."""
        request = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}}
        answer = await self.api("POST", f"{path}/rpc", json=request)
        return str(answer.get("result", answer))

    async def expect(self, what: str, happened: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it has happened; after STEP_TIMEOUT_SECONDS, the demo fails."""
        deadline = time.monotonic() + STEP_TIMEOUT_SECONDS
        while not await happened():
            if time.monotonic() > deadline:
                raise DemoFailed(f"The demo failed: {what} did not happen within {STEP_TIMEOUT_SECONDS:.0f} s.")
            await asyncio.sleep(POLL_SECONDS)

    async def expect_event(self, event_type: str, deployment_id: str) -> None:
        """Wait until the consumer has printed this event; show all events that it printed since the last call."""

        async def printed() -> bool:
            return any(event_type in line and deployment_id in line for line in self._new_events())

        await self.expect(f"the event {event_type} of {deployment_id}", printed)
        lines = self._new_events()
        self.events_shown += len(lines)
        for line in lines:
            self.say(f"    event  {line}")

    async def expect_answer(self, title: str, path: str, version: str) -> None:
        """Call the agent at this path and show its answer, which must come from this version."""
        answer = await self.call(path)
        self.say(f"    {title:<32} -> {answer}")
        if f"from {version}." not in answer:
            raise DemoFailed(f"The demo failed: {version} did not answer the call to {title}.")

    def _new_events(self) -> list[str]:
        log = log_of(self.system.data_dir, "consumer")
        lines = [line for line in log.read_text(errors="replace").splitlines() if "podium." in line]
        return lines[self.events_shown :]


async def demo(settings: Settings, say: Say) -> None:
    """Run all steps in a temporary data directory, then stop the system.

    Raises:
        ServersError: the system did not start, or a step had another result than expected.
        KeyboardInterrupt: SIGTERM or Ctrl-C ended the demo; the system is stopped.
    """
    with _temporary_folder() as folder:
        if await interrupted(_run(settings, folder / "data", say)):
            raise KeyboardInterrupt


async def _run(settings: Settings, data_dir: Path, say: Say) -> None:
    say("Podium: deploying is not promoting, and nothing a pod says can move live traffic by accident.\n")
    ports = free_ports(["api", *VERSIONS])
    settings = settings.model_copy(update={"host": LOOPBACK, "port": ports["api"], "api_key": SecretStr("")})
    started = time.monotonic()
    async with running_system(settings, data_dir, say) as system, aiohttp.ClientSession() as client:
        say(f"Ready after {time.monotonic() - started:.1f} s: {system.api_url}")
        demo = Demo(system, client, say)
        async with program(system, "consumer", "examples.consumer", {}):
            await demo.expect("the start of the consumer", lambda: _consumer_bound(system))
            await _steps(demo, ports)
    say("\nAll of this was real: PostgreSQL, RabbitMQ, two pods, a consumer, workers and the API. It is stopped now.")


async def _steps(demo: Demo, ports: dict[str, int]) -> None:
    agent = f"/agents/name/{SAMPLE_AGENT}"
    demo.step("1. A pod of hello-v1 announces itself on RabbitMQ. Nothing serves the agent yet, so it goes live.")
    async with sample_pod(demo.system, "hello-v1", ports["hello-v1"]), contextlib.AsyncExitStack() as stack:
        await demo.expect_event("deployment.promoted", "hello-v1")
        await demo.expect_answer("production", agent, "hello-v1")
        agent_id = (await demo.api("GET", agent))["id"]

        demo.step("2. A pod of hello-v2 announces itself. It is a preview: reachable by its id, without live traffic.")
        await stack.enter_async_context(sample_pod(demo.system, "hello-v2", ports["hello-v2"]))
        await demo.expect_event("deployment.ready", "hello-v2")
        preview = f"/agents/{agent_id}/deployments/hello-v2"
        await demo.expect_answer("production", agent, "hello-v1")
        await demo.expect_answer("preview hello-v2", preview, "hello-v2")

        demo.step("3. An operator promotes hello-v2. Every call sent after the reply reaches it.")
        promoted = await demo.api("POST", f"{preview}/promote", json={"reason": "The preview looks good."})
        demo.say(f"    promoted                         -> {promoted['id']} is_production={promoted['is_production']}")
        await demo.expect_answer("production", agent, "hello-v2")
        await demo.expect_event("deployment.promoted", "hello-v2")

        demo.step("4. hello-v2 causes complaints. A rollback returns to hello-v1.")
        await demo.api("POST", f"/agents/{agent_id}/rollback", json={"reason": "Customers complain."})
        await demo.expect_answer("production", agent, "hello-v1")
        await demo.expect_event("deployment.promoted", "hello-v1")

        demo.step("5. The ledger shows what served when, and why.")
        for row in reversed(await demo.api("GET", f"/agents/{agent_id}/promotions")):
            reason = f"  {row['reason']}" if row["reason"] else ""
            demo.say(f"    generation {row['generation']}  {row['to_deployment_id']}  by {row['cause']}{reason}")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that the servers' unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="podium-demo-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def _consumer_bound(system: System) -> bool:
    async with await open_connection(broker_url(system.settings), CONNECT_SECONDS) as connection:
        try:
            queue = await (await connection.channel()).get_queue(CONSUMER_QUEUE)
        except ChannelNotFoundEntity:
            return False
        return bool(queue.declaration_result.consumer_count)
