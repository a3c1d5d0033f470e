"""One private server: started, watched, stopped, and started again with the same port and data."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from podium.servers import process
from podium.servers.errors import ServerDied, ServerStartFailed
from podium.servers.memory import Memory
from podium.servers.ports import free_ports, is_free
from podium.servers.process import GuardedProcess, Launch, Surroundings

START_PATIENCE_SECONDS = 90.0  # a slow disk after a crash, with a recovery to run
POLL_SECONDS = 0.02
# Somebody else may take a port between our look and the server's bind.
ATTEMPTS = 3
TAIL_LINES = 20
TAIL_BYTES = 16_384
LOG_BYTES = 10_000_000


class Kind(Protocol):
    """What differs between PostgreSQL and RabbitMQ."""

    @property
    def name(self) -> str:
        """Short and fixed: names the folder, the log and the account."""

    @property
    def port_names(self) -> Sequence[str]:
        """The ports it needs."""

    def url(self, ports: Mapping[str, int]) -> str:
        """How programs reach it, password included."""

    async def prepare(self, around: Surroundings) -> None:
        """Makes what has to be there before each start."""

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """What to start."""

    async def is_ready(self, pid: int, ports: Mapping[str, int]) -> bool:
        """Whether clients are served."""


class PrivateServer:
    """A server of our own on loopback. `stop`, `start` and `kill` keep its address and its data."""

    def __init__(self, kind: Kind, memory: Memory, around: Surroundings) -> None:
        self._kind = kind
        self._memory = memory
        self._around = around
        self._process: GuardedProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._died = asyncio.Event()
        self._address_is_known = False

    @property
    def name(self) -> str:
        """`postgres` or `rabbitmq`."""
        return self._kind.name

    @property
    def url(self) -> str:
        """How programs reach it, from the first start on."""
        return self._kind.url(self._ports)

    @property
    def log(self) -> Path:
        """What the server writes."""
        return self._around.log

    @property
    def pid(self) -> int | None:
        """The server's own process; None while it does not run."""
        return self._process.pid if self._process and self._process.code is None else None

    async def start(self) -> None:
        """Returns when clients are served. Does nothing if it runs.

        Raises:
            ServerStartFailed: with the end of the server's log.
        """
        if self.pid is not None:
            return
        self._died.clear()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._start_once()
            except ServerStartFailed as failure:
                if attempt == ATTEMPTS or self._address_is_known or all(map(is_free, self._ports.values())):
                    raise ServerStartFailed(self._explained(str(failure))) from failure
            else:
                self._address_is_known = True
                return

    async def stop(self) -> None:
        """Shuts it down in order, everything it saved kept; returns when none of its processes is left."""
        running = self._unwatched()
        if running is not None:
            await running.stop()

    async def kill(self) -> None:
        """SIGKILL, as in a power cut; returns when none of its processes is left."""
        running = self._unwatched()
        if running is not None:
            await running.kill()

    async def died(self) -> ServerDied:
        """Waits until it ends without having been told to, and says so."""
        await self._died.wait()
        code = self._process.code if self._process else None
        return ServerDied(self._explained(f"{self.name} ended unexpectedly (exit code {code})"))

    @property
    def _ports(self) -> dict[str, int]:
        return self._memory.of(self.name).ports

    async def _start_once(self) -> None:
        self._choose_ports()
        self._turn_log()
        try:
            await self._kind.prepare(self._around)
            started = await process.start(self._kind.launch(self._ports), self._around)
        except OSError as error:
            raise ServerStartFailed(f"{self.name} could not be started: {error}") from error
        try:
            await self._until_ready(started)
        except BaseException:
            await started.stop()
            raise
        self._process = started
        self._watching = asyncio.create_task(self._watch(started), name=f"watch {self.name}")

    def _choose_ports(self) -> None:
        """Those remembered if they are free; once an address was handed out it does not change any more."""
        known = self._ports
        if self._address_is_known or (
            set(known) == set(self._kind.port_names) and all(is_free(port) for port in known.values())
        ):
            return
        self._memory.of(self.name).ports = free_ports(self._kind.port_names)
        self._memory.save()

    async def _until_ready(self, started: GuardedProcess) -> None:
        deadline = time.monotonic() + START_PATIENCE_SECONDS
        while not await self._kind.is_ready(started.pid, self._ports):
            if started.code is not None:
                raise ServerStartFailed(f"{self.name} ended while it was starting (exit code {started.code})")
            if time.monotonic() > deadline:
                raise ServerStartFailed(f"{self.name} did not become ready within {START_PATIENCE_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _watch(self, started: GuardedProcess) -> None:
        await started.ended()
        self._died.set()

    def _unwatched(self) -> GuardedProcess | None:
        """The process, whose end is no surprise from here on."""
        if self._watching is not None:
            self._watching.cancel()
        return self._process

    def _turn_log(self) -> None:
        """Starts a new log when the old one has grown; one old one is kept."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def _explained(self, what: str) -> str:
        """With the end of the log, and where the rest is."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                tail = log.read().decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            tail = []
        return "\n".join([f"{what}. The end of its log ({self.log}):", *(f"    {line}" for line in tail)])
