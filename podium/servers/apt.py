"""Installing packages with apt so that the only change is new files: nothing started, enabled or restarted."""

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

# Of the machine; tests lay one out in a folder.
ROOT = Path("/")

# Asked by Debian's maintainer scripts before any service is started, stopped or restarted.
POLICY = "usr/sbin/policy-rc.d"
POLICY_KEPT = "usr/sbin/policy-rc.d.kept-by-podium"
# Asked by PostgreSQL's packages before they make a database cluster of their own.
CLUSTER_SETTING = "etc/postgresql-common/createcluster.d/podium-setup.conf"
# For all checkouts on the machine: two set-ups that save and restore the policy must not overlap.
LOCK = "run/podium-setup.lock"

SYSTEMD_LINKS = "etc/systemd/system"
RUNLEVELS = "etc"

DPKG_LOCK_PATIENCE_SECONDS = 600  # a fresh machine may be busy with its own unattended upgrades

# Blocks only while the set-up lives, so that even a set-up that was killed blocks no service for good.
POLICY_SCRIPT = """\
#!/bin/sh
# Written by Podium's set-up while it installs packages; put back as it was when the set-up ends.
[ -d /proc/{pid} ] && exit 101
[ -x {kept} ] && exec {kept} "$@"
exit 0
"""


@dataclass(frozen=True)
class Enabled:
    """What starts with the machine: systemd's links and the links of SysV runlevels."""

    units: frozenset[Path]
    scripts: frozenset[Path]


def install(packages: Sequence[str], say: Say, root: Path = ROOT) -> None:
    """Installs `packages` from freshly read lists; afterwards no service of them runs or is enabled.

    Raises:
        InstallFailed: apt-get failed; its own output has said why.
    """
    with machine_lock(say, root), services_blocked(root), no_cluster_made(root):
        before = enabled_now(root)
        say("Reading the package lists (apt-get update) ...")
        if _apt("update") != 0:
            say("Some package lists could not be read; going on with those that could.")
        if _run(["dpkg", "--configure", "-a"]) != 0:
            say("An earlier installation is unfinished, and finishing it failed; going on.")
        say(f"Installing {' '.join(packages)} (apt-get install) ...")
        failed = _apt("install", "--yes", "--no-install-recommends", *packages) != 0
        disable(enabled_now(root), before, say)
        if failed:
            raise InstallFailed(f"apt-get could not install {' '.join(packages)}; its messages above say why.")


@contextlib.contextmanager
def machine_lock(say: Say, root: Path) -> Iterator[None]:
    """Waits until no other set-up on this machine is installing."""
    with (root / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is installing packages; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def services_blocked(root: Path) -> Iterator[None]:
    """While inside, packages can start, stop and restart no service; the machine's own policy comes back after."""
    policy, kept = root / POLICY, root / POLICY_KEPT
    _restore(policy, kept)
    if policy.exists():
        shutil.copy2(policy, kept)
    fresh = policy.with_name(f"{policy.name}.podium-{os.getpid()}")
    fresh.write_text(POLICY_SCRIPT.format(pid=os.getpid(), kept=kept), encoding="utf-8")
    fresh.chmod(0o755)
    fresh.replace(policy)
    try:
        yield
    finally:
        _restore(policy, kept)


@contextlib.contextmanager
def no_cluster_made(root: Path) -> Iterator[None]:
    """While inside, installing PostgreSQL makes no cluster on port 5432."""
    setting = root / CLUSTER_SETTING
    missing = [folder for folder in (setting.parent, setting.parent.parent) if not folder.exists()]
    setting.parent.mkdir(parents=True, exist_ok=True)
    setting.write_text("create_main_cluster = false\n", encoding="utf-8")
    try:
        yield
    finally:
        setting.unlink(missing_ok=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # the packages have moved in: no longer ours to remove
                folder.rmdir()


def enabled_now(root: Path) -> Enabled:
    """What would start with the machine now; a policy blocks starting, but packages enable all the same."""
    units = {link for pattern in ("*.wants/*", "*.requires/*") for link in (root / SYSTEMD_LINKS).glob(pattern)}
    return Enabled(frozenset(units), frozenset((root / RUNLEVELS).glob("rc[S2-5].d/S*")))


def disable(after: Enabled, before: Enabled, say: Say) -> None:
    """Disables what became enabled between `before` and `after`."""
    units = sorted({link.name for link in after.units - before.units})
    scripts = sorted({link.name[len("S00") :] for link in after.scripts - before.scripts})
    if not units and not scripts:
        return
    say(f"Leaving disabled: {' '.join(sorted({*units, *scripts}))}.")
    if units and shutil.which("systemctl"):
        _run(["systemctl", "--quiet", "disable", *units])
    for script in scripts:
        _run(["update-rc.d", script, "disable"])
    for link in after.units - before.units:
        link.unlink(missing_ok=True)  # where systemctl is absent or could not


def _restore(policy: Path, kept: Path) -> None:
    if kept.exists():
        kept.replace(policy)
    elif policy.exists() and "Podium's set-up" in policy.read_text(encoding="utf-8", errors="replace"):
        policy.unlink()


def _apt(*arguments: str) -> int:
    options = ("-q", "-o", f"DPkg::Lock::Timeout={DPKG_LOCK_PATIENCE_SECONDS}", "-o", "Dpkg::Use-Pty=0")
    return _run(["apt-get", *options, *arguments])


def _run(command: Sequence[str]) -> int:
    """Runs to the end even if the terminal says Ctrl-C: a package manager cut short leaves a broken machine."""
    quiet = {
        "DEBIAN_FRONTEND": "noninteractive",
        "UCF_FORCE_CONFFOLD": "1",
        "NEEDRESTART_SUSPEND": "1",  # Ubuntu would restart running services after each installation
    }
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **quiet}, start_new_session=True)
    except OSError as error:
        raise InstallFailed(f"{command[0]} could not be run: {error}") from error
    try:
        return child.wait()
    except BaseException:
        child.send_signal(signal.SIGINT)  # apt-get stops downloads at once and lets dpkg finish
        child.wait()
        raise
