"""Whom the servers run as: never root."""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from podium.servers.errors import ServersError

NOBODY = "nobody"


@dataclass(frozen=True)
class Account:
    """An unprivileged account of this machine."""

    name: str
    uid: int
    gid: int


def account_for(server: str, folder: Path) -> Account | None:
    """The account that runs `server` with its data in `folder`; None if that is ourselves.

    For root: the owner of data that exist (another account could not read them), else the account that the server's
    package made, else `nobody`.
    """
    if os.geteuid() != 0:
        return None
    if folder.exists() and folder.stat().st_uid != 0:
        return _by_uid(folder.stat().st_uid, folder.stat().st_gid)
    for name in (server, NOBODY):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise ServersError(
        f"{server} refuses to run as root, and there is no account `{server}` or `{NOBODY}` to run it as."
    )


def can_enter(account: Account | None, folder: Path) -> bool:
    """Whether `account` can reach what is in `folder`; asked by trying it, so that ACLs and mounts count."""
    if account is None:
        return os.access(folder, os.X_OK)
    try:
        tried = subprocess.run(
            ["test", "-x", str(folder)],  # noqa: S607 - `test` lies elsewhere on each system
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServersError(f"This process is root but may not become `{account.name}`: {error}") from error
    return tried.returncode == 0


def give(path: Path, account: Account | None) -> None:
    """Makes `account` the owner of `path`."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def write_for(account: Account | None, path: Path, text: str) -> None:
    """Writes a file that only `account` (and root) can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    give(path, account)


def _by_uid(uid: int, gid: int) -> Account:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, gid)
