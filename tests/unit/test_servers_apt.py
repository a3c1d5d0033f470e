import os
import subprocess
from pathlib import Path

import pytest

from podium.servers import apt


def test_services_are_blocked_during_an_installation_and_the_old_policy_is_restored(tmp_path: Path) -> None:
    """With the same bytes and mode, also after an interrupt."""
    policy, _ = _policies(tmp_path)
    policy.write_text("#!/bin/sh\nexit 42\n")
    policy.chmod(0o755)
    with pytest.raises(KeyboardInterrupt), apt.services_blocked(tmp_path):
        _interrupt_after(_exit_code(policy) == 101)
    assert _exit_code(policy) == 42
    assert list(policy.parent.iterdir()) == [policy]


def test_without_a_policy_before_there_is_none_afterwards(tmp_path: Path) -> None:
    """Most machines have none."""
    policy, _ = _policies(tmp_path)
    with apt.services_blocked(tmp_path):
        assert _exit_code(policy) == 101
    assert list(policy.parent.iterdir()) == []


def test_a_killed_set_up_does_not_block_services_forever(tmp_path: Path) -> None:
    """Without its process, its policy allows services or runs the one that it replaced, until the next set-up."""
    policy, kept = _policies(tmp_path)
    policy.write_text(apt.POLICY_SCRIPT.format(pid=2**22 + 1, kept=kept))
    policy.chmod(0o755)
    assert _exit_code(policy) == 0
    kept.write_text("#!/bin/sh\nexit 42\n")
    kept.chmod(0o755)
    assert _exit_code(policy) == 42
    with apt.services_blocked(tmp_path):
        assert _exit_code(policy) == 101
    assert _exit_code(policy) == 42
    assert not kept.exists()


def test_no_database_cluster_is_created_and_the_setting_is_removed(tmp_path: Path) -> None:
    """So are the folders created for it, unless a package has put files there."""
    setting = tmp_path / apt.CLUSTER_SETTING
    (tmp_path / "etc").mkdir()
    with apt.no_cluster_created(tmp_path):
        assert setting.read_text() == "create_main_cluster = false\n"
    assert list((tmp_path / "etc").iterdir()) == []
    with apt.no_cluster_created(tmp_path):
        (setting.parent.parent / "createcluster.conf").touch()
    assert sorted(path.name for path in (tmp_path / "etc").rglob("*")) == ["createcluster.conf", "postgresql-common"]


def test_only_newly_enabled_services_are_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages enable their services even if the policy blocks the start."""
    systemd, etc = tmp_path / apt.SYSTEMD_LINKS, tmp_path / apt.RUNLEVELS
    _link(systemd / "multi-user.target.wants" / "postgresql.service")
    _link(etc / "rc2.d" / "S01postgresql")
    before = apt.enabled_now(tmp_path)
    _link(systemd / "multi-user.target.wants" / "rabbitmq-server.service")
    _link(systemd / "sockets.target.wants" / "epmd.socket")
    _link(etc / "rc2.d" / "S01rabbitmq-server")
    _link(etc / "rc3.d" / "S01rabbitmq-server")
    commands: list[list[str]] = []
    monkeypatch.setattr(apt, "_run", commands.append)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")

    said: list[str] = []
    apt.disable(apt.enabled_now(tmp_path), before, said.append)

    assert commands == [
        ["systemctl", "--quiet", "disable", "epmd.socket", "rabbitmq-server.service"],
        ["update-rc.d", "rabbitmq-server", "disable"],
    ]
    assert said == [
        "Disabling the services that the packages enabled: epmd.socket rabbitmq-server rabbitmq-server.service."
    ]
    assert apt.enabled_now(tmp_path).units == before.units


def test_commands_are_noninteractive_and_restart_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Ubuntu, needrestart would restart running servers after each installation."""
    said: list[str] = []
    seen = tmp_path / "seen"
    program = tmp_path / "apt-get"
    program.write_text(f'#!/bin/sh\necho "$DEBIAN_FRONTEND $NEEDRESTART_SUSPEND $1" >> {seen}\nexit 0\n')
    for name in ("dpkg", "systemctl", "update-rc.d"):
        (tmp_path / name).symlink_to(program)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    _policies(tmp_path)
    (tmp_path / "run").mkdir()
    apt.install(["rabbitmq-server"], said.append, tmp_path)
    assert seen.read_text().splitlines() == [
        "noninteractive 1 -q",
        "noninteractive 1 --configure",
        "noninteractive 1 -q",
    ]
    assert said[0] == "Reading the package lists (apt-get update) ..."


def _interrupt_after(expected: bool) -> None:  # noqa: FBT001
    assert expected
    raise KeyboardInterrupt


def _policies(root: Path) -> tuple[Path, Path]:
    """The paths of the policy and of its saved copy, in a file system below `root`."""
    (root / apt.POLICY).parent.mkdir(parents=True)
    return root / apt.POLICY, root / apt.POLICY_KEPT


def _exit_code(policy: Path) -> int:
    """The exit code that a package's script gets before it starts a service."""
    return subprocess.run([str(policy), "rabbitmq-server", "start"], check=False).returncode


def _link(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/lib/systemd/system/example.service")
