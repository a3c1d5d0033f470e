"""One private server: it starts, stops and starts again with the same ports and data, and reports its failure."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from podium.servers import process
from podium.servers.data_directory import SavedState
from podium.servers.errors import ServerDied, ServerStartFailed
from podium.servers.ports import free_ports, is_free
from podium.servers.process import GuardedProcess, Launch, ProcessContext

START_TIMEOUT_SECONDS = 90.0  # enough for crash recovery on a slow disk
POLL_SECONDS = 0.02
# Another program may take a port between the check and the server's bind.
ATTEMPTS = 3
TAIL_LINES = 20
TAIL_BYTES = 16_384
LOG_BYTES = 10_000_000


class ServerKind(Protocol):
    """What differs between PostgreSQL and RabbitMQ."""

    @property
    def name(self) -> str:
        """The name of its folder, its log and its account."""

    @property
    def port_names(self) -> Sequence[str]:
        """The names of the ports that it needs."""

    def url(self, ports: Mapping[str, int]) -> str:
        """Its address for clients, with the password."""

    async def prepare(self, context: ProcessContext) -> None:
        """Creates the files that a start needs."""

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The programs to start, and the signals that stop them."""

    async def is_ready(self, pid: int, ports: Mapping[str, int]) -> bool:
        """Whether the server accepts clients."""


class PrivateServer:
    """A private server on loopback. It keeps its address and its data over `stop`, `kill` and `start`."""

    def __init__(self, kind: ServerKind, state: SavedState, context: ProcessContext) -> None:
        self._kind = kind
        self._state = state
        self._context = context
        self._process: GuardedProcess | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._died = asyncio.Event()
        self._address_is_known = False

    @property
    def name(self) -> str:
        """`postgres` or `rabbitmq`."""
        return self._kind.name

    @property
    def url(self) -> str:
        """Its address for clients, with the password. Valid after the first start."""
        return self._kind.url(self._ports)

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return self._context.log

    @property
    def pid(self) -> int | None:
        """The process id of the server; None while it does not run."""
        return self._process.pid if self._process and self._process.code is None else None

    async def start(self) -> None:
        """Returns when the server accepts clients. Does nothing if it runs.

        Raises:
            ServerStartFailed: it did not start; the message contains the end of its log.
        """
        if self.pid is not None:
            return
        self._died.clear()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._start_once()
            except ServerStartFailed as failure:
                if attempt == ATTEMPTS or self._address_is_known or all(map(is_free, self._ports.values())):
                    raise ServerStartFailed(self._with_log_tail(str(failure))) from failure
            else:
                self._address_is_known = True
                return

    async def stop(self) -> None:
        """Shuts it down in order; returns when all its processes have ended. The data stay."""
        running = self._stop_watching()
        if running is not None:
            await running.stop()

    async def kill(self) -> None:
        """Sends SIGKILL, as in a power cut; returns when all its processes have ended."""
        running = self._stop_watching()
        if running is not None:
            await running.kill()

    async def died(self) -> ServerDied:
        """Waits until it ends without `stop` or `kill`; returns the error to report."""
        await self._died.wait()
        code = self._process.code if self._process else None
        return ServerDied(self._with_log_tail(f"{self.name} ended unexpectedly (exit code {code})"))

    @property
    def _ports(self) -> dict[str, int]:
        return self._state.server(self.name).ports

    async def _start_once(self) -> None:
        self._choose_ports()
        self._rotate_log()
        try:
            await self._kind.prepare(self._context)
            started = await process.start(self._kind.launch(self._ports), self._context)
        except OSError as error:
            raise ServerStartFailed(f"{self.name} could not be started: {error}") from error
        try:
            await self._wait_until_ready(started)
        except BaseException:
            await started.stop()
            raise
        self._process = started
        self._watch_task = asyncio.create_task(self._watch(started), name=f"watch {self.name}")

    def _choose_ports(self) -> None:
        """Keeps the saved ports if they are free. After the first start they never change: clients know them."""
        saved = self._ports
        if self._address_is_known or (
            set(saved) == set(self._kind.port_names) and all(is_free(port) for port in saved.values())
        ):
            return
        self._state.server(self.name).ports = free_ports(self._kind.port_names)
        self._state.save()

    async def _wait_until_ready(self, started: GuardedProcess) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not await self._kind.is_ready(started.pid, self._ports):
            if started.code is not None:
                raise ServerStartFailed(f"{self.name} ended while it was starting (exit code {started.code})")
            if time.monotonic() > deadline:
                raise ServerStartFailed(f"{self.name} did not become ready within {START_TIMEOUT_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _watch(self, started: GuardedProcess) -> None:
        await started.ended()
        self._died.set()

    def _stop_watching(self) -> GuardedProcess | None:
        """Returns the process; its end is not reported as a failure any more."""
        if self._watch_task is not None:
            self._watch_task.cancel()
        return self._process

    def _rotate_log(self) -> None:
        """Renames a log of more than LOG_BYTES. Only one old log is kept."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def _with_log_tail(self, sentence: str) -> str:
        """The sentence, the path of the log, and the last lines of the log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                tail = log.read().decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            tail = []
        return "\n".join([f"{sentence}. The end of its log ({self.log}):", *(f"    {line}" for line in tail)])
