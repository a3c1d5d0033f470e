"""The unprivileged accounts that the servers run as. PostgreSQL refuses to run as root."""

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
    """The account that runs `server` with its data in `folder`; None for the account of this process.

    If this process is root: the owner of existing data (no other account can read them), else the account that the
    server's package created, else `nobody`.

    Raises:
        ServersError: this machine has none of these accounts.
    """
    if os.geteuid() != 0:
        return None
    if folder.exists() and folder.stat().st_uid != 0:
        return _account_of(folder.stat().st_uid, folder.stat().st_gid)
    for name in (server, NOBODY):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise ServersError(
        f"{server} must not run as root, and this machine has neither an account `{server}` nor `{NOBODY}` to run it."
    )


def can_enter(account: Account | None, folder: Path) -> bool:
    """Whether `account` can reach the contents of `folder`. Runs a program as that account, to respect ACLs and mounts.

    Raises:
        ServersError: this process is root but cannot switch to `account`.
    """
    if account is None:
        return os.access(folder, os.X_OK)
    try:
        test = subprocess.run(
            ["test", "-x", str(folder)],  # noqa: S607 - the path of `test` differs between systems
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServersError(
            f"This process is root but cannot switch to the account `{account.name}`: {error}"
        ) from error
    return test.returncode == 0


def change_owner(path: Path, account: Account | None) -> None:
    """Makes `account` the owner of `path`; does nothing for None."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def write_private(account: Account | None, path: Path, text: str) -> None:
    """Writes a file that only `account` (and root) can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    change_owner(path, account)


def _account_of(uid: int, gid: int) -> Account:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, gid)
