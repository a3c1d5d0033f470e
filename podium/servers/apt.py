"""Installs packages with apt without starting, enabling or restarting any service."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from podium.servers.errors import InstallFailed

Say = Callable[[str], None]

# The file system of the machine; tests use a folder instead.
ROOT = Path("/")

# Debian's maintainer scripts run it before they start, stop or restart a service.
POLICY = "usr/sbin/policy-rc.d"
POLICY_KEPT = "usr/sbin/policy-rc.d.kept-by-podium"
# PostgreSQL's packages read it before they create a database cluster.
CLUSTER_SETTING = "etc/postgresql-common/createcluster.d/podium-setup.conf"
# One lock for all checkouts: two set-ups must not save and restore the policy at the same time.
LOCK = "run/podium-setup.lock"

SYSTEMD_LINKS = "etc/systemd/system"
RUNLEVELS = "etc"

DPKG_LOCK_TIMEOUT_SECONDS = 600  # on a new machine, unattended upgrades may run

# Blocks services only while the process of the set-up exists, so that a killed set-up does not block them forever.
POLICY_SCRIPT = """\
#!/bin/sh
# Written by Podium's set-up while it installs packages. The set-up restores the original file at its end.
[ -d /proc/{pid} ] && exit 101
[ -x {kept} ] && exec {kept} "$@"
exit 0
"""


@dataclass(frozen=True)
class Enabled:
    """The services that start at boot: links of systemd units, and links of scripts in SysV runlevels."""

    units: frozenset[Path]
    scripts: frozenset[Path]


def install(packages: Sequence[str], say: Say, root: Path = ROOT) -> None:
    """Updates the package lists and installs `packages`. Does not start or enable their services.

    Raises:
        InstallFailed: apt-get failed; its output, printed before, gives the reason.
    """
    with machine_lock(say, root), services_blocked(root), no_cluster_created(root):
        before = enabled_now(root)
        say("Reading the package lists (apt-get update) ...")
        if _apt("update") != 0:
            say("Some package lists could not be read; continuing with the others.")
        if _run(["dpkg", "--configure", "-a"]) != 0:
            say("An earlier installation is incomplete and could not be completed; continuing.")
        say(f"Installing {' '.join(packages)} (apt-get install) ...")
        failed = _apt("install", "--yes", "--no-install-recommends", *packages) != 0
        disable(enabled_now(root), before, say)
        if failed:
            raise InstallFailed(f"apt-get could not install {' '.join(packages)}; its messages above give the reason.")


@contextlib.contextmanager
def machine_lock(say: Say, root: Path) -> Iterator[None]:
    """Only one set-up on this machine installs packages at a time; waits for the others."""
    with (root / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is installing packages; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def services_blocked(root: Path) -> Iterator[None]:
    """Inside the block, packages cannot start, stop or restart services. Afterwards restores the machine's policy."""
    policy, kept = root / POLICY, root / POLICY_KEPT
    _restore(policy, kept)
    if policy.exists():
        shutil.copy2(policy, kept)
    new = policy.with_name(f"{policy.name}.podium-{os.getpid()}")
    new.write_text(POLICY_SCRIPT.format(pid=os.getpid(), kept=kept), encoding="utf-8")
    new.chmod(0o755)
    new.replace(policy)
    try:
        yield
    finally:
        _restore(policy, kept)


@contextlib.contextmanager
def no_cluster_created(root: Path) -> Iterator[None]:
    """Inside the block, installing PostgreSQL creates no cluster on port 5432."""
    setting = root / CLUSTER_SETTING
    missing = [folder for folder in (setting.parent, setting.parent.parent) if not folder.exists()]
    setting.parent.mkdir(parents=True, exist_ok=True)
    setting.write_text("create_main_cluster = false\n", encoding="utf-8")
    try:
        yield
    finally:
        setting.unlink(missing_ok=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: packages have put files there
                folder.rmdir()


def enabled_now(root: Path) -> Enabled:
    """The services that start at boot now. The policy does not stop packages from enabling services."""
    units = {link for pattern in ("*.wants/*", "*.requires/*") for link in (root / SYSTEMD_LINKS).glob(pattern)}
    return Enabled(frozenset(units), frozenset((root / RUNLEVELS).glob("rc[S2-5].d/S*")))


def disable(after: Enabled, before: Enabled, say: Say) -> None:
    """Disables the services that became enabled between `before` and `after`."""
    units = sorted({link.name for link in after.units - before.units})
    scripts = sorted({link.name[len("S00") :] for link in after.scripts - before.scripts})
    if not units and not scripts:
        return
    say(f"Disabling the services that the packages enabled: {' '.join(sorted({*units, *scripts}))}.")
    if units and shutil.which("systemctl"):
        _run(["systemctl", "--quiet", "disable", *units])
    for script in scripts:
        _run(["update-rc.d", script, "disable"])
    for link in after.units - before.units:
        link.unlink(missing_ok=True)  # if systemctl is missing or failed


def _restore(policy: Path, kept: Path) -> None:
    if kept.exists():
        kept.replace(policy)
    elif policy.exists() and "Podium's set-up" in policy.read_text(encoding="utf-8", errors="replace"):
        policy.unlink()


def _apt(*arguments: str) -> int:
    options = ("-q", "-o", f"DPkg::Lock::Timeout={DPKG_LOCK_TIMEOUT_SECONDS}", "-o", "Dpkg::Use-Pty=0")
    return _run(["apt-get", *options, *arguments])


def _run(command: Sequence[str]) -> int:
    """Runs the command to its end, also after Ctrl-C: an interrupted dpkg leaves packages half-installed."""
    noninteractive = {
        "DEBIAN_FRONTEND": "noninteractive",
        "UCF_FORCE_CONFFOLD": "1",
        "NEEDRESTART_SUSPEND": "1",  # on Ubuntu, needrestart restarts running services after each installation
    }
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env={**os.environ, **noninteractive}, start_new_session=True
        )
    except OSError as error:
        raise InstallFailed(f"{command[0]} could not be run: {error}") from error
    try:
        return child.wait()
    except BaseException:
        child.send_signal(signal.SIGINT)  # apt-get then cancels downloads, but waits for dpkg
        child.wait()
        raise
