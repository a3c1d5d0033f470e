"""Finds the programs of PostgreSQL and RabbitMQ: on PATH, and in the folders where packages install them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST_POSTGRES = 14

# Debian and Ubuntu, Red Hat, Homebrew on Apple silicon and on Intel. Packages do not add these folders to PATH.
POSTGRES_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
RABBITMQ_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")

# Packages install a wrapper script there that works only for root and for the account `rabbitmq`.
RABBITMQ_WRAPPERS = ("/usr/sbin", "/sbin")

# The PATH of an ordinary user may lack these folders, which may contain Erlang.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin"

VERSION_TIMEOUT_SECONDS = 10

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class PostgresBinaries:
    """One installation: `bin_dir` holds `postgres` and `initdb` of the same major version."""

    bin_dir: Path
    major: int


@dataclass(frozen=True)
class RabbitmqBinaries:
    """The server's start script, and the port mapper that it needs (None: Erlang starts one by itself)."""

    server: Path
    epmd: Path | None


def search_path(environ: Mapping[str, str]) -> str:
    """PATH, followed by SYSTEM_PATH."""
    return f"{environ.get('PATH', '')}:{SYSTEM_PATH}".lstrip(":")


def find_postgres(
    environ: Mapping[str, str],
    *,
    major: int | None = None,
    folders: Iterable[str] = POSTGRES_FOLDERS,
) -> PostgresBinaries | None:
    """The first usable PostgreSQL on PATH, else the newest one in `folders`, which are patterns; None if there is none.

    With `major`, only that version: each major version of PostgreSQL opens only its own data.
    """
    on_path = [_postgres_in(folder) for folder in _folders(environ.get("PATH", ""))]
    elsewhere = [_postgres_in(folder) for pattern in folders for folder in _glob(pattern)]
    found = [binaries for binaries in on_path if binaries is not None]
    found += sorted((b for b in elsewhere if b is not None), key=lambda b: b.major, reverse=True)
    usable = (b for b in found if (b.major >= OLDEST_POSTGRES if major is None else b.major == major))
    return next(usable, None)


def find_rabbitmq(environ: Mapping[str, str], *, folders: Iterable[str] = RABBITMQ_FOLDERS) -> RabbitmqBinaries | None:
    """RabbitMQ's start script, on PATH or in `folders`; None if the script or Erlang is missing."""
    if shutil.which("erl", path=search_path(environ)) is None:
        return None
    on_path = [folder for folder in _folders(environ.get("PATH", "")) if str(folder) not in RABBITMQ_WRAPPERS]
    for folder in (*on_path, *map(Path, folders)):
        script = folder / "rabbitmq-server"
        if os.access(script, os.X_OK):
            return RabbitmqBinaries(script, _epmd(environ))
    return None


def find_chromium(environ: Mapping[str, str]) -> Path | None:
    """Chromium on PATH, for the tests of the console; None if there is none."""
    found = (shutil.which(name, path=search_path(environ)) for name in CHROMIUM_NAMES)
    return next((Path(path) for path in found if path is not None), None)


def _folders(path: str) -> list[Path]:
    return [Path(entry) for entry in path.split(os.pathsep) if entry]


def _glob(pattern: str) -> Iterator[Path]:
    return Path("/").glob(pattern.lstrip("/"))


def _postgres_in(folder: Path) -> PostgresBinaries | None:
    """The installation of `folder`, whose `postgres` may be a link into the folder with the other programs."""
    postgres = folder / "postgres"
    if not os.access(postgres, os.X_OK):
        return None
    bin_dir = postgres.resolve().parent
    if not os.access(bin_dir / "initdb", os.X_OK):
        return None
    major = _major(_output_of([str(bin_dir / "postgres"), "--version"]))
    return None if major is None else PostgresBinaries(bin_dir, major)


def _major(version: str) -> int | None:
    """`postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` -> 15."""
    match = re.search(r"\(PostgreSQL\) (\d+)", version)
    return int(match[1]) if match else None


def _output_of(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _epmd(environ: Mapping[str, str]) -> Path | None:
    """The port mapper on PATH, else the one in the Erlang installation on PATH."""
    found = shutil.which("epmd", path=search_path(environ))
    if found is not None:
        return Path(found)
    erl = shutil.which("erl", path=search_path(environ))
    if erl is None:
        return None
    root = Path(erl).resolve().parent.parent
    inside = sorted(candidate for pattern in ("erts-*/bin/epmd", "bin/epmd") for candidate in root.glob(pattern))
    return inside[-1] if inside else None
