"""A private PostgreSQL: its data directory, its start command, its readiness check and its stop signals."""

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podium.servers.accounts import change_owner, write_private
from podium.servers.binaries import OLDEST_POSTGRES, PostgresBinaries, find_postgres, search_path
from podium.servers.errors import ServersMissing, ServerStartFailed
from podium.servers.ports import LOOPBACK
from podium.servers.process import Command, Launch, ProcessContext, run

NAME = "postgres"
USER = DATABASE = "podium"
PORT = "postgresql"

STATUS_LINE = 7  # of postmaster.pid, counted from 0; it says `ready` when PostgreSQL accepts connections
MAX_CONNECTIONS = 200

# Fast shutdown; then without a checkpoint (recovery at the next start); then SIGKILL.
STOP = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 5.0))

# Commits survive a killed process. Only a crash of the operating system can lose them.
NOT_DURABLE = ("fsync=off", "full_page_writes=off")


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL with its data below `folder`, the superuser `podium` and the database `podium`."""

    folder: Path
    password: str
    environ: Mapping[str, str]
    durable: bool = True

    name = NAME
    port_names = (PORT,)

    @property
    def data(self) -> Path:
        """The data directory of PostgreSQL."""
        return self.folder / "data"

    def url(self, ports: Mapping[str, int]) -> str:
        """The URL of the database, with the password."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{ports[PORT]}/{DATABASE}"

    async def prepare(self, context: ProcessContext) -> None:
        """Creates the data directory if it is missing. A failure leaves no incomplete one."""
        if self.data.exists():
            # The caller holds the lock that all processes of an earlier server inherited, so that server has ended, and
            # a process with the id in this file is another one.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            return
        unfinished = self.folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        change_owner(unfinished, context.account)
        password_file = self.folder / "password"
        write_private(context.account, password_file, self.password)
        bin_dir = str(self._binaries().bin_dir)
        initdb = [f"{bin_dir}/initdb", "-D", str(unfinished), f"--username={USER}", f"--pwfile={password_file}"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", *([] if self.durable else ["--no-sync"])]
        single = [f"{bin_dir}/postgres", "--single", "-D", str(unfinished), "-c", "exit_on_error=on", "postgres"]
        try:
            for command in (self._command(initdb), self._command(single, f"CREATE DATABASE {DATABASE}\n")):
                code = await run(command, context)
                if code != 0:
                    raise ServerStartFailed(f"{Path(command.argv[0]).name} ended with exit code {code}")
        finally:
            password_file.unlink(missing_ok=True)
        unfinished.rename(self.data)

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The server in the foreground, on loopback only."""
        settings = [
            f"listen_addresses={LOOPBACK}",
            f"port={ports[PORT]}",
            "unix_socket_directories=",
            f"max_connections={MAX_CONNECTIONS}",
            "password_encryption=scram-sha-256",
            "timezone=UTC",
            "log_timezone=UTC",
            *(() if self.durable else NOT_DURABLE),
        ]
        options = [option for setting in settings for option in ("-c", setting)]
        postgres = str(self._binaries().bin_dir / "postgres")
        return Launch(self._command([postgres, "-D", str(self.data), *options]), stop=STOP)

    async def is_ready(self, pid: int, _ports: Mapping[str, int]) -> bool:
        """Whether it accepts connections, according to the status line that PostgreSQL writes for pg_ctl."""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > STATUS_LINE and lines[0] == str(pid) and lines[STATUS_LINE].strip() == "ready"

    def _command(self, argv: list[str], text: str = "") -> Command:
        env = {"PATH": search_path(self.environ), "HOME": str(self.folder), "LC_ALL": "C"}
        return Command(argv, env, self.folder, if_orphaned=signal.SIGINT, input=text)

    def _binaries(self) -> PostgresBinaries:
        """The programs of the version that created the data; if there are no data, of any supported version."""
        version = self.data / "PG_VERSION"
        major = int(version.read_text(encoding="utf-8")) if os.path.lexists(version) else None
        found = find_postgres(self.environ, major=major)
        if found is not None:
            return found
        if major is not None:
            raise ServersMissing(
                f"PostgreSQL {major}, which created the data in {self.data}, is not installed on this machine. "
                "Install this version, or use another data directory."
            )
        raise ServersMissing(
            f"PostgreSQL {OLDEST_POSTGRES} or newer is not installed on this machine. "
            "Install it with: python3 podium/bootstrap.py"
        )
