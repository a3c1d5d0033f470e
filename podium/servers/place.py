"""Where the servers' data are: in the data directory, or where an unprivileged account can reach them."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from podium.servers.errors import ServersError
from podium.servers.memory import Memory
from podium.servers.unprivileged import Account, account_for, can_enter, give

ELSEWHERE = Path("/var/lib/podium")
NOTE = "servers"

INSIDE = "."
ENTERABLE = 0o711


def choose(memory: Memory, servers: Sequence[str], elsewhere: Path = ELSEWHERE) -> Path:
    """The folder for the data of `servers`, chosen once per data directory and remembered.

    Raises:
        ServersError: data exist in the data directory, but their account cannot enter it any more.
    """
    inside = memory.data_dir
    barred = [name for name in servers if not can_enter(account_for(name, inside / name), inside)]
    if memory.place is None:
        memory.place = str(_outside(inside, elsewhere)) if barred else INSIDE
        memory.save()
    if memory.place == INSIDE and barred:
        raise ServersError(
            f"The data of {' and '.join(barred)} are in {inside}, which their account cannot enter any more; "
            "let it (chmod o+x on the folder and those above it) or use another data directory."
        )
    place = inside / memory.place
    place.mkdir(parents=True, exist_ok=True)
    return place


def folder_for(place: Path, server: str) -> tuple[Path, Account | None]:
    """The server's own folder, made if missing, which nobody but its account (and root) can read."""
    folder = place / server
    account = account_for(server, folder)
    if not folder.exists():
        folder.mkdir(mode=0o700)
        give(folder, account)
    return folder, account


def _outside(data_dir: Path, elsewhere: Path) -> Path:
    """A folder named after the data directory's path, and a note that leads there.

    Data found there belong to a data directory that is gone, with their passwords; one set of them is kept aside.
    """
    place = elsewhere / hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    if place.exists():
        aside = place.with_name(f"{place.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
    place.mkdir(parents=True)
    for folder in (elsewhere, place):
        folder.chmod(ENTERABLE)  # whatever the umask
    (data_dir / NOTE).write_text(
        f"The data of PostgreSQL and RabbitMQ are in {place}:\n"
        "the unprivileged accounts that the servers run as cannot enter this folder.\n",
        encoding="utf-8",
    )
    return place
