"""The sample agent of `podium demo` and `podium up --demo`: two versions, each with one pod."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from podium.local.system import System, start_program
from podium.servers.ports import LOOPBACK, free_ports
from podium.servers.process import GuardedProcess
from services.registration.signatures import signing_key

SAMPLE_AGENT = "hello"
VERSIONS = ("hello-v1", "hello-v2")


@asynccontextmanager
async def program(system: System, name: str, module: str, environment: dict[str, str]) -> AsyncIterator[GuardedProcess]:
    """Runs this Python module inside the block."""
    process = await start_program(system, name, module, environment)
    try:
        yield process
    finally:
        await process.stop()


def sample_pod(system: System, deployment_id: str, port: int) -> AbstractAsyncContextManager[GuardedProcess]:
    """Runs a pod of this version inside the block. The pod announces itself."""
    environment = {
        "AGENT_NAME": SAMPLE_AGENT,
        "AGENTEX_DEPLOYMENT_ID": deployment_id,
        "ACP_URL": f"http://{LOOPBACK}",
        "ACP_PORT": str(port),
        "PODIUM_AGENT_KEY": signing_key(system.settings.secret_key.get_secret_value(), SAMPLE_AGENT),
    }
    return program(system, deployment_id, "examples.agent_pod", environment)


@asynccontextmanager
async def sample_agents(system: System) -> AsyncIterator[None]:
    """Runs a pod of each version inside the block."""
    ports = free_ports(VERSIONS)
    first, second = VERSIONS
    async with sample_pod(system, first, ports[first]), sample_pod(system, second, ports[second]):
        yield
