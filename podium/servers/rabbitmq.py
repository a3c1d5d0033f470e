"""A private RabbitMQ: how it is made, started, recognised as ready, and asked to end."""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podium.servers.binaries import RabbitmqBinaries, find_rabbitmq, search_path
from podium.servers.errors import ServersMissing
from podium.servers.ports import LOOPBACK
from podium.servers.process import Command, Launch, Surroundings
from podium.servers.unprivileged import give, write_for

NAME = "rabbitmq"
USER = "podium"
# The data belong to the node's name, so it never changes; ports may.
NODE = "podium@localhost"

AMQP, DISTRIBUTION, EPMD = "amqp", "distribution", "epmd"

# A small broker: fewer threads than it would take on a big machine, and no spinning while idle.
MOST_SCHEDULERS = 4

STOP = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"
PROBE_SECONDS = 2

CONFIGURATION = """\
default_user = {user}
default_pass = {password}
default_user_tags.administrator = true
log.connection.level = warning
"""


@dataclass(frozen=True)
class Rabbitmq:
    """One node's data, in `folder`; its only user is ours, `guest` never exists."""

    folder: Path
    password: str
    environ: Mapping[str, str]

    name = NAME
    port_names = (AMQP, DISTRIBUTION, EPMD)

    def url(self, ports: Mapping[str, int]) -> str:
        """How programs reach its default virtual host."""
        return f"amqp://{USER}:{self.password}@{LOOPBACK}:{ports[AMQP]}/"

    async def prepare(self, around: Surroundings) -> None:
        """Writes its configuration; the node makes its data and its user at its first start."""
        for name in ("mnesia", "log", "conf.d"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            give(self.folder / name, around.account)
        configuration = CONFIGURATION.format(user=USER, password=self.password)
        write_for(around.account, self.folder / "rabbitmq.conf", configuration)
        write_for(around.account, self.folder / "rabbitmq-env.conf", "")
        write_for(around.account, self.folder / "enabled_plugins", "[].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            write_for(around.account, cookie, secrets.token_hex(20))
            cookie.chmod(0o400)

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The node in the foreground, beside a port mapper of its own, which no other node can keep alive."""
        found = self._binaries()
        env = self._environment(ports)
        node = Command([str(found.server)], env, self.folder, if_orphaned=signal.SIGTERM)
        if found.epmd is None:
            return Launch(node, stop=STOP)
        mapper = Command([str(found.epmd), "-port", str(ports[EPMD]), "-address", LOOPBACK], env, self.folder)
        return Launch(node, helpers=[mapper], stop=STOP)

    async def is_ready(self, _pid: int, ports: Mapping[str, int]) -> bool:
        """Whether it answers the opening of an AMQP connection; listeners are the last thing a node starts."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
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
        """Complete, so that nothing of /etc/rabbitmq or of the caller's shell is taken."""
        schedulers = min(MOST_SCHEDULERS, os.cpu_count() or 1)
        here = str(self.folder)
        return {
            "PATH": search_path(self.environ),
            "HOME": here,
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(ports[EPMD]),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_ALLOW_INPUT": "1",  # no shell stays between the guard and the node
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(ports[AMQP]),
            "RABBITMQ_DIST_PORT": str(ports[DISTRIBUTION]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-noinput +S {schedulers}:{schedulers} +sbwt none +sbwtdcpu none +sbwtdio none"
                " -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            "RABBITMQ_CONF_ENV_FILE": f"{here}/rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{here}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{here}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{here}/generated",
            "RABBITMQ_SCHEMA_DIR": f"{here}/schema",
            "RABBITMQ_MNESIA_BASE": f"{here}/mnesia",
            "RABBITMQ_PLUGINS_EXPAND_DIR": f"{here}/plugins",
            "RABBITMQ_PID_FILE": f"{here}/rabbitmq.pid",
            "RABBITMQ_LOG_BASE": f"{here}/log",
            "RABBITMQ_LOGS": "-",
        }

    def _binaries(self) -> RabbitmqBinaries:
        found = find_rabbitmq(self.environ)
        if found is None:
            raise ServersMissing("RabbitMQ is not on this machine; python3 podium/bootstrap.py installs it.")
        return found
