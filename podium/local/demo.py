"""What `podium demo` does: the whole system with real sample agents, told as a story, checked at every step."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import SecretStr

from podium.local.samples import SAMPLE_AGENT, VERSIONS, a_pod, program
from podium.local.system import Say, System, log_of, running_system
from podium.local.up import stopped_early
from podium.servers import ServersError
from podium.servers.ports import LOOPBACK, free_ports
from services.settings import Settings

CONSUMER_QUEUE = "example.consumer"
STEP_SECONDS = 20.0
POLL_SECONDS = 0.05


class DemoFailed(ServersError):
    """The demo did not see what it promised."""


@dataclass
class Story:
    """The running system, and what has been told so far."""

    system: System
    client: aiohttp.ClientSession
    say: Say
    events_told: int = field(default=0)

    def step(self, title: str) -> None:
        """Begin the next step."""
        self.say(f"\n{title}")

    async def api(self, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401 - JSON
        """The API's answer as JSON."""
        async with self.client.request(method, f"{self.system.api_url}{path}", **options) as response:
            return await response.json(content_type=None)

    async def ask(self, path: str) -> str:
        """What the agent behind this route says."""
        call = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}}
        answer = await self.api("POST", f"{path}/rpc", json=call)
        return str(answer.get("result", answer))

    async def expect(self, what: str, seen: Callable[[], Awaitable[bool]]) -> None:
        """Wait for it, or end the demo."""
        deadline = time.monotonic() + STEP_SECONDS
        while not await seen():
            if time.monotonic() > deadline:
                raise DemoFailed(f"This was promised and did not happen within {STEP_SECONDS:.0f} s: {what}.")
            await asyncio.sleep(POLL_SECONDS)

    async def expect_event(self, event_type: str, deployment_id: str) -> None:
        """Wait until the consumer has printed this event, and show all that it printed since the last time."""

        async def printed() -> bool:
            return any(event_type in line and deployment_id in line for line in self._new_events())

        await self.expect(f"the event {event_type} of {deployment_id} at the consumer", printed)
        lines = self._new_events()
        self.events_told += len(lines)
        for line in lines:
            self.say(f"    event  {line}")

    async def expect_answer(self, title: str, path: str, version: str) -> None:
        """Show what the agent behind this route says, which must come from this version."""
        answer = await self.ask(path)
        self.say(f"    {title:<32} -> {answer}")
        if f"from {version}." not in answer:
            raise DemoFailed(f"{title} was promised to be answered by {version}.")

    def _new_events(self) -> list[str]:
        log = log_of(self.system.data_dir, "consumer")
        lines = [line for line in log.read_text(errors="replace").splitlines() if "podium." in line]
        return lines[self.events_told :]


async def demo(settings: Settings, say: Say) -> None:
    """Tell the story and end. Raises `ServersError` if anything that it promises does not happen."""
    with _throw_away_folder() as folder:
        if await stopped_early(_demo(settings, folder / "data", say)):
            raise KeyboardInterrupt


async def _demo(settings: Settings, data_dir: Path, say: Say) -> None:
    say("Podium: deploying is not promoting, and nothing a pod says can move live traffic by accident.\n")
    ports = free_ports(["api", *VERSIONS])
    settings = settings.model_copy(update={"host": LOOPBACK, "port": ports["api"], "api_key": SecretStr("")})
    began = time.monotonic()
    async with running_system(settings, data_dir, say) as system, aiohttp.ClientSession() as client:
        say(f"Ready after {time.monotonic() - began:.1f} s: {system.api_url}")
        story = Story(system, client, say)
        async with program(system, "consumer", "examples.consumer", {}):
            await story.expect("the consumer bound its queue", lambda: _consumer_bound(system))
            await _tell(story, ports)
    say("\nThat was real: PostgreSQL, RabbitMQ, two pods, a consumer, workers and the API. All of it is stopped now.")


async def _tell(story: Story, ports: dict[str, int]) -> None:
    agent = f"/agents/name/{SAMPLE_AGENT}"
    story.step("1. A pod of hello-v1 announces itself on RabbitMQ. Nothing serves the agent yet, so it goes live.")
    async with a_pod(story.system, "hello-v1", ports["hello-v1"]), contextlib.AsyncExitStack() as later:
        await story.expect_event("deployment.promoted", "hello-v1")
        await story.expect_answer("production", agent, "hello-v1")
        agent_id = (await story.api("GET", agent))["id"]

        story.step("2. A pod of hello-v2 announces itself. It is a preview: reachable by its id, without live traffic.")
        await later.enter_async_context(a_pod(story.system, "hello-v2", ports["hello-v2"]))
        await story.expect_event("deployment.ready", "hello-v2")
        preview = f"/agents/{agent_id}/deployments/hello-v2"
        await story.expect_answer("production", agent, "hello-v1")
        await story.expect_answer("preview hello-v2", preview, "hello-v2")

        story.step("3. Somebody promotes hello-v2. The next call after the answer reaches it.")
        promoted = await story.api("POST", f"{preview}/promote", json={"reason": "The preview looks good."})
        story.say(f"    promoted                         -> {promoted['id']} is_production={promoted['is_production']}")
        await story.expect_answer("production", agent, "hello-v2")
        await story.expect_event("deployment.promoted", "hello-v2")

        story.step("4. It was not good after all: one step back.")
        await story.api("POST", f"/agents/{agent_id}/rollback", json={"reason": "Customers complain."})
        await story.expect_answer("production", agent, "hello-v1")
        await story.expect_event("deployment.promoted", "hello-v1")

        story.step("5. The ledger knows what served when, and why.")
        for row in reversed(await story.api("GET", f"/agents/{agent_id}/promotions")):
            reason = f"  {row['reason']}" if row["reason"] else ""
            story.say(f"    generation {row['generation']}  {row['to_deployment_id']}  by {row['cause']}{reason}")


@contextlib.contextmanager
def _throw_away_folder() -> Iterator[Path]:
    """A folder that the servers' unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="podium-demo-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def _consumer_bound(system: System) -> bool:
    async with await aio_pika.connect(system.settings.amqp_url.get_secret_value()) as connection:
        try:
            queue = await (await connection.channel()).get_queue(CONSUMER_QUEUE)
        except ChannelNotFoundEntity:
            return False
        return bool(queue.declaration_result.consumer_count)
