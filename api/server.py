"""Running the application under uvicorn, until the process is told to stop."""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Generator

import structlog
import uvicorn

from api.app import create_app
from api.gateway import AnswerBroke
from services.settings import Settings

# Above the gateway's own towards agents, which is bound by what pods do.
KEEP_ALIVE_SECONDS = 5

log = structlog.get_logger(__name__)


class ApiServer(uvicorn.Server):
    """A server that leaves signals to the program around it: set `should_exit` to stop it in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take no signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        log.info("The API listens.", action="api.listening", addresses=self.addresses)

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every socket, with the port that a 0 in the settings became."""
        names = [each.getsockname() for server in self.servers for each in server.sockets]
        return [f"{host}:{port}" for host, port, *_ in names]

    def stop(self) -> None:
        """Finish what runs, within the drain time; a second time: at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


class _ToldAlready(logging.Filter):
    """Drops uvicorn's traceback of an agent's broken answer: the gateway has logged it, and to raise is its way out."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (error is not None and isinstance(error.__cause__, AnswerBroke))


_TOLD_ALREADY = _ToldAlready()


def make_server(settings: Settings) -> ApiServer:
    """A server to run inside an asyncio program: `await server.serve()`. Raises `StartRefused`."""
    app = create_app(settings)
    logging.getLogger("uvicorn.error").addFilter(_TOLD_ALREADY)
    return ApiServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            lifespan="on",
            ws="none",
            access_log=False,
            log_config=None,
            # An agent's answer carries its own.
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout.total_seconds()),
        )
    )


def serve(settings: Settings) -> None:
    """Run the API until SIGTERM or SIGINT, then finish what runs. Raises `StartRefused`."""
    server = make_server(settings)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_until_told(server))


async def _until_told(server: ApiServer) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    await server.serve()
