"""Private servers with TLS and certificates of an authority of their own, and with RabbitMQ's management API."""

import os
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from yarl import URL

from podium.servers.accounts import change_owner, write_private
from podium.servers.binaries import find_rabbitmq
from podium.servers.data_directory import choose_servers_dir, load_state, lock_servers, make_server_folder
from podium.servers.ports import LOOPBACK
from podium.servers.postgres import Postgres
from podium.servers.process import Launch, ProcessContext
from podium.servers.rabbitmq import EPMD, NODE, Rabbitmq
from podium.servers.server import PrivateServer

AMQPS, MANAGEMENT = "amqps", "management"
# The certificates are of this name only, so that an address with the loopback's number has another one.
TLS_HOST = "localhost"

RABBITMQ_CONFIGURATION = """\
listeners.ssl.1 = {host}:{amqps}
ssl_options.cacertfile = {folder}/authority.pem
ssl_options.certfile = {folder}/certificate.pem
ssl_options.keyfile = {folder}/key.pem
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
management.tcp.ip = {host}
management.tcp.port = {management}
"""


class SecuredPostgres(Postgres):
    """PostgreSQL with `ssl = on`."""

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The server with its certificate."""
        plain = super().launch(ports)
        options = ["ssl=on", f"ssl_cert_file={self.folder}/certificate.pem", f"ssl_key_file={self.folder}/key.pem"]
        argv = [*plain.server.argv, *(option for setting in options for option in ("-c", setting))]
        return Launch(self._command(argv), stop=plain.stop)


class SecuredRabbitmq(Rabbitmq):
    """RabbitMQ with a TLS listener beside the plain one, and with the management API."""

    port_names = (*Rabbitmq.port_names, AMQPS, MANAGEMENT)  # type: ignore[assignment]  # a longer tuple

    async def prepare(self, context: ProcessContext) -> None:
        """Enables the management API."""
        await super().prepare(context)
        write_private(context.account, self.folder / "enabled_plugins", "[rabbitmq_management].\n")

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The node with the ports of both."""
        configuration = RABBITMQ_CONFIGURATION.format(host=LOOPBACK, folder=self.folder, **ports)
        path = self.folder / "conf.d" / "secured.conf"
        path.write_text(configuration)
        path.chmod(0o644)
        return super().launch(ports)


@dataclass(frozen=True)
class SecuredServers:
    """The addresses of both servers, and the file of the authority that signed their certificates."""

    database_url: str
    amqp_url: str
    """Without TLS."""
    amqps_url: str
    management_url: str
    """Of the management API, with the administrator's password."""
    ca_file: Path
    ctl_environment: Mapping[str, str]
    """With these variables, RabbitMQ's own programs talk to this node."""

    def rabbitmqctl(self, folder: Path) -> dict[str, str]:
        """Variables with which a shell finds a `rabbitmqctl` that talks to this node; it is written into the folder."""
        found = find_rabbitmq(os.environ)
        assert found is not None
        program = folder / "rabbitmqctl"
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.ctl_environment.items())
        program.write_text(f'#!/bin/sh\nexec env {variables} {found.server.with_name("rabbitmqctl")} "$@"\n')
        program.chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}"}


@asynccontextmanager
async def secured_servers(folder: Path) -> AsyncIterator[SecuredServers]:
    """Run both inside the block. `folder` is one that every account can enter."""
    authority = trustme.CA()
    ca_file = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    state = load_state(folder)
    servers_dir = choose_servers_dir(state, [Postgres.name, Rabbitmq.name])
    async with lock_servers(servers_dir) as lock:
        servers = {}
        for name, kind in ((Postgres.name, SecuredPostgres), (Rabbitmq.name, SecuredRabbitmq)):
            data, account = make_server_folder(servers_dir, name)
            certificate = authority.issue_cert(TLS_HOST)
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems).decode()
            write_private(account, data / "certificate.pem", chain)
            write_private(account, data / "key.pem", certificate.private_key_pem.bytes().decode())
            write_private(account, data / "authority.pem", authority.cert_pem.bytes().decode())
            change_owner(data, account)
            server_kind = kind(data, state.server(name).password, os.environ)
            servers[name] = PrivateServer(server_kind, state, ProcessContext(account, folder / f"{name}.log", [lock]))
        try:
            for server in servers.values():
                await server.start()
            amqp = URL(servers[Rabbitmq.name].url)
            ports = state.server(Rabbitmq.name).ports
            yield SecuredServers(
                database_url=str(URL(servers[Postgres.name].url).with_host(TLS_HOST)),
                amqp_url=str(amqp),
                amqps_url=str(amqp.with_scheme("amqps").with_host(TLS_HOST).with_port(ports[AMQPS])),
                management_url=str(amqp.with_scheme("http").with_port(ports[MANAGEMENT])),
                ca_file=ca_file,
                ctl_environment={
                    "HOME": str(servers_dir / Rabbitmq.name),
                    "RABBITMQ_NODENAME": NODE,
                    "ERL_EPMD_PORT": str(ports[EPMD]),
                    "RABBITMQ_CONF_ENV_FILE": "/dev/null",
                },
            )
        finally:
            for server in servers.values():
                await server.stop()
