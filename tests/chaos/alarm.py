"""RabbitMQ's memory alarm, during which it blocks publishers (https://www.rabbitmq.com/docs/memory)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from podium.servers import PrivateServer
from podium.servers.process import Command, run
from podium.servers.rabbitmq import NODE, Rabbitmq

# A limit that every node exceeds, and the default.
LOW, DEFAULT = "0.000001", "0.4"


@asynccontextmanager
async def memory_alarm(server: PrivateServer) -> AsyncIterator[None]:
    """Keep the memory alarm on inside the context."""
    await _set_watermark(server, LOW)
    yield
    await _set_watermark(server, DEFAULT)


async def _set_watermark(server: PrivateServer, fraction: str) -> None:
    kind = server._kind
    assert isinstance(kind, Rabbitmq)
    control = kind._binaries().server.with_name("rabbitmqctl")
    arguments = [str(control), "-n", NODE, "set_vm_memory_high_watermark", fraction]
    command = Command(arguments, {**kind._environment(server._ports)}, Path(kind.folder))
    code = await run(command, server._context)
    assert code == 0, server.log.read_text()[-1000:]
