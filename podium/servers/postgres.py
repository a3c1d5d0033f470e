"""A private PostgreSQL: how it is made, started, recognised as ready, and asked to end."""

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podium.servers.binaries import OLDEST_POSTGRES, PostgresBinaries, find_postgres, search_path
from podium.servers.errors import ServersMissing, ServerStartFailed
from podium.servers.ports import LOOPBACK
from podium.servers.process import Command, Launch, Surroundings, run
from podium.servers.unprivileged import give, write_for

NAME = "postgres"
USER = DATABASE = "podium"
PORT = "postgresql"

STATUS_LINE = 7  # of postmaster.pid, counted from 0; `ready` once connections are accepted
MAX_CONNECTIONS = 200

# Fast shutdown; then without a checkpoint (recovery at the next start); then whatever it takes.
STOP = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 5.0))

# Still safe when a process is killed: only a crash of the operating system can lose what was committed.
NOT_DURABLE = ("fsync=off", "full_page_writes=off")


@dataclass(frozen=True)
class Postgres:
    """One data directory of PostgreSQL, in `folder`, with a superuser `podium` and a database `podium`."""

    folder: Path
    password: str
    environ: Mapping[str, str]
    durable: bool = True

    name = NAME
    port_names = (PORT,)

    @property
    def data(self) -> Path:
        """What PostgreSQL calls its data directory."""
        return self.folder / "data"

    def url(self, ports: Mapping[str, int]) -> str:
        """How programs reach it."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{ports[PORT]}/{DATABASE}"

    async def prepare(self, around: Surroundings) -> None:
        """Makes the data directory, whole or not at all."""
        if self.data.exists():
            # We hold the lock that every process of an earlier server inherited: whoever has its pid now is another.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            return
        unfinished = self.folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        give(unfinished, around.account)
        password_file = self.folder / "password"
        write_for(around.account, password_file, self.password)
        bin_dir = str(self._binaries().bin_dir)
        initdb = [f"{bin_dir}/initdb", "-D", str(unfinished), f"--username={USER}", f"--pwfile={password_file}"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", *([] if self.durable else ["--no-sync"])]
        single = [f"{bin_dir}/postgres", "--single", "-D", str(unfinished), "-c", "exit_on_error=on", "postgres"]
        try:
            for command in (self._command(initdb), self._command(single, f"CREATE DATABASE {DATABASE}\n")):
                code = await run(command, around)
                if code != 0:
                    raise ServerStartFailed(f"{Path(command.argv[0]).name} ended with exit code {code}")
        finally:
            password_file.unlink(missing_ok=True)
        unfinished.rename(self.data)

    def launch(self, ports: Mapping[str, int]) -> Launch:
        """The server itself, in the foreground, on loopback only."""
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
        """Whether it accepts connections, by what the server notes for pg_ctl."""
        try:
            noted = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(noted) > STATUS_LINE and noted[0] == str(pid) and noted[STATUS_LINE].strip() == "ready"

    def _command(self, argv: list[str], text: str = "") -> Command:
        env = {"PATH": search_path(self.environ), "HOME": str(self.folder), "LC_ALL": "C"}
        return Command(argv, env, self.folder, if_orphaned=signal.SIGINT, input=text)

    def _binaries(self) -> PostgresBinaries:
        """Of the version that made the data, if there are data."""
        version = self.data / "PG_VERSION"
        major = int(version.read_text(encoding="utf-8")) if os.path.lexists(version) else None
        found = find_postgres(self.environ, major=major)
        if found is None:
            wanted = f"{major}, which made the data in {self.data}," if major else f"{OLDEST_POSTGRES} or newer"
            raise ServersMissing(
                f"PostgreSQL {wanted} is not on this machine; python3 podium/bootstrap.py installs it."
            )
        return found
