import os
import subprocess
from pathlib import Path

import pytest

from podium.servers import apt


def test_services_are_blocked_while_packages_are_installed_and_the_old_policy_comes_back(tmp_path: Path) -> None:
    """Byte for byte and with its mode, after an interrupt too."""
    policy, _ = _policies(tmp_path)
    policy.write_text("#!/bin/sh\nexit 42\n")
    policy.chmod(0o755)
    with pytest.raises(KeyboardInterrupt), apt.services_blocked(tmp_path):
        _interrupt_after(_asked(policy) == 101)
    assert _asked(policy) == 42
    assert list(policy.parent.iterdir()) == [policy]


def test_where_there_was_no_policy_there_is_none_afterwards(tmp_path: Path) -> None:
    """Most machines have none."""
    policy, _ = _policies(tmp_path)
    with apt.services_blocked(tmp_path):
        assert _asked(policy) == 101
    assert list(policy.parent.iterdir()) == []


def test_a_killed_set_up_blocks_nothing_for_good(tmp_path: Path) -> None:
    """Its policy lets services start once its process is gone, or asks the policy it replaced; the next one repairs."""
    policy, kept = _policies(tmp_path)
    policy.write_text(apt.POLICY_SCRIPT.format(pid=2**22 + 1, kept=kept))
    policy.chmod(0o755)
    assert _asked(policy) == 0
    kept.write_text("#!/bin/sh\nexit 42\n")
    kept.chmod(0o755)
    assert _asked(policy) == 42
    with apt.services_blocked(tmp_path):
        assert _asked(policy) == 101
    assert _asked(policy) == 42
    assert not kept.exists()


def test_no_database_cluster_is_made_and_the_setting_goes_away(tmp_path: Path) -> None:
    """The folders that were made for it too, unless a package has moved in."""
    setting = tmp_path / apt.CLUSTER_SETTING
    (tmp_path / "etc").mkdir()
    with apt.no_cluster_made(tmp_path):
        assert setting.read_text() == "create_main_cluster = false\n"
    assert list((tmp_path / "etc").iterdir()) == []
    with apt.no_cluster_made(tmp_path):
        (setting.parent.parent / "createcluster.conf").touch()
    assert sorted(path.name for path in (tmp_path / "etc").rglob("*")) == ["createcluster.conf", "postgresql-common"]


def test_what_became_enabled_is_disabled_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages enable their services even where starting them is blocked."""
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
    assert said == ["Leaving disabled: epmd.socket rabbitmq-server rabbitmq-server.service."]
    assert apt.enabled_now(tmp_path).units == before.units


def test_commands_ask_nothing_and_restart_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ubuntu would restart running servers after each installation."""
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
    """Where the policy is and where it is kept, in a machine laid out below `root`."""
    (root / apt.POLICY).parent.mkdir(parents=True)
    return root / apt.POLICY, root / apt.POLICY_KEPT


def _asked(policy: Path) -> int:
    """What a package's script is told when it wants to start a service."""
    return subprocess.run([str(policy), "rabbitmq-server", "start"], check=False).returncode


def _link(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/lib/systemd/system/whatever")
