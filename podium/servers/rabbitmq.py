"""A private RabbitMQ: its files, its start command, its readiness check and its stop signals."""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podium.servers.accounts import change_owner, write_private
from podium.servers.binaries import RabbitmqBinaries, find_rabbitmq, search_path
from podium.servers.errors import ServersMissing
from podium.servers.ports import LOOPBACK
from podium.servers.process import Command, Launch, ProcessContext

NAME = "rabbitmq"
USER = "podium"
# RabbitMQ finds its data by the node name, so it never changes. The ports may.
NODE = "podium@localhost"

AMQP, DISTRIBUTION, EPMD = "amqp", "distribution", "epmd"

# A small broker needs fewer threads than Erlang starts on a large machine. `+sbwt none` stops them from busy-waiting.
MAX_SCHEDULERS = 4

STOP = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"
PROBE_TIMEOUT_SECONDS = 2

CONFIGURATION = """\
default_user = {user}
default_pass = {password}
default_user_tags.administrator = true
log.connection.level = warning
"""


@dataclass(frozen=True)
class Rabbitmq:
    """A RabbitMQ node with its data in `folder`. Its only user is `podium`; `guest` does not exist."""

    folder: Path
    password: str
    environ: Mapping[str, str]

    name = NAME
    port_names = (AMQP, DISTRIBUTION, EPMD)

    def url(self, ports: Mapping[str, int]) -> str:
        """The AMQP URL of its default virtual host, with the password."""
        return f"amqp://{USER}:{self.password}@{LOOPBACK}:{ports[AMQP]}/"

    async def prepare(self, context: ProcessContext) -> None:
        """Writes its configuration. The node creates its data and its user at its first start."""
        for name in ("mnesia", "log", "conf.d"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            change_owner(self.folder / name, context.account)
        configuration = CONFIGURATION.format(user=USER, password=self.password)
        write_private(context.account, self.folder / "rabbitmq.conf", configuration)
        write_private(context.account, self.folder / "rabbitmq-env.conf", "")
        write_private(context.account, self.folder / "enabled_plugins", "[].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            write_private(context.account, cookie, secrets.token_hex(20))
            cookie.chmod(0o400)

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The node in the foreground, with its own port mapper (epmd), so that no node of another program uses it."""
        binaries = self._binaries()
        env = self._environment(ports)
        node = Command([str(binaries.server)], env, self.folder, if_orphaned=signal.SIGTERM)
        if binaries.epmd is None:
            return Launch(node, stop=STOP)
        mapper = Command([str(binaries.epmd), "-port", str(ports[EPMD]), "-address", LOOPBACK], env, self.folder)
        return Launch(node, helpers=[mapper], stop=STOP)

    async def is_ready(self, _pid: int, ports: Mapping[str, int]) -> bool:
        """Whether it answers an AMQP protocol header. A node starts its listeners last."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(LOOPBACK, ports[AMQP])
                try:
                    writer.write(PROTOCOL_HEADER)
                    return await reader.read(1) == METHOD_FRAME
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError):
            return False

    def _environment(self, ports: Mapping[str, int]) -> dict[str, str]:
        """All variables that RabbitMQ reads, so that neither /etc/rabbitmq nor the user's shell changes this node."""
        schedulers = min(MAX_SCHEDULERS, os.cpu_count() or 1)
        folder = str(self.folder)
        return {
            "PATH": search_path(self.environ),
            "HOME": folder,
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(ports[EPMD]),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_ALLOW_INPUT": "1",  # the start script then replaces itself by the node
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(ports[AMQP]),
            "RABBITMQ_DIST_PORT": str(ports[DISTRIBUTION]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-noinput +S {schedulers}:{schedulers} +sbwt none +sbwtdcpu none +sbwtdio none"
                " -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{folder}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_PLUGINS_EXPAND_DIR": f"{folder}/plugins",
            "RABBITMQ_PID_FILE": f"{folder}/rabbitmq.pid",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": "-",
        }

    def _binaries(self) -> RabbitmqBinaries:
        found = find_rabbitmq(self.environ)
        if found is None:
            raise ServersMissing(
                "RabbitMQ is not installed on this machine. Install it with: python3 podium/bootstrap.py"
            )
        return found
