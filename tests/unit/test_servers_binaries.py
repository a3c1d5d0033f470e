from pathlib import Path

import pytest

from podium.servers.binaries import find_postgres, find_rabbitmq

NOWHERE: dict[str, str] = {"PATH": ""}


def a_program(path: Path, output: str = "") -> Path:
    """An executable that prints a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def a_postgres(bin_dir: Path, version: str) -> Path:
    """A PostgreSQL installation: the programs that the search needs."""
    a_program(bin_dir / "initdb")
    a_program(bin_dir / "postgres", f"postgres (PostgreSQL) {version} (Debian {version}-0+deb)")
    return bin_dir


def test_the_newest_version_in_the_folders_of_packages_is_used(tmp_path: Path) -> None:
    """Versions are compared as numbers: 9 is older than 15."""
    for version in ("9.6.24", "15.4", "14.9"):
        a_postgres(tmp_path / version / "bin", version)
    found = find_postgres(NOWHERE, folders=[f"{tmp_path}/*/bin"])
    assert found is not None
    assert (found.bin_dir, found.major) == (tmp_path / "15.4" / "bin", 15)


def test_a_version_on_path_is_preferred(tmp_path: Path) -> None:
    """Also if a folder of packages has a newer one."""
    a_postgres(tmp_path / "usual" / "16" / "bin", "16.1")
    mine = a_postgres(tmp_path / "mine", "14.1")
    found = find_postgres({"PATH": str(mine)}, folders=[f"{tmp_path}/usual/*/bin"])
    assert found is not None
    assert found.bin_dir == mine


def test_a_link_on_path_is_followed_to_its_installation(tmp_path: Path) -> None:
    """`postgres` needs the `initdb` of the same version."""
    real = a_postgres(tmp_path / "15" / "bin", "15.1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").symlink_to(real / "postgres")
    found = find_postgres({"PATH": str(tmp_path / "bin")}, folders=[])
    assert found is not None
    assert found.bin_dir == real


def test_a_version_on_path_that_is_too_old_is_ignored(tmp_path: Path) -> None:
    """The search continues in the folders of packages."""
    old = a_postgres(tmp_path / "old", "13.9")
    new = a_postgres(tmp_path / "16" / "bin", "16.0")
    found = find_postgres({"PATH": str(old)}, folders=[f"{tmp_path}/*/bin"])
    assert found is not None
    assert found.bin_dir == new
    assert find_postgres({"PATH": str(old)}, folders=[]) is None


def test_data_are_opened_by_the_version_that_created_them(tmp_path: Path) -> None:
    """A newer installed version is ignored. Without the right version, the result is None."""
    for version in ("15.4", "16.1"):
        a_postgres(tmp_path / version / "bin", version)
    folders = [f"{tmp_path}/*/bin"]
    found = find_postgres(NOWHERE, major=15, folders=folders)
    assert found is not None
    assert found.major == 15
    assert find_postgres(NOWHERE, major=14, folders=folders) is None


def test_a_program_that_does_not_run_is_ignored(tmp_path: Path) -> None:
    """So is a program that prints no version of PostgreSQL."""
    a_program(tmp_path / "initdb")
    a_program(tmp_path / "postgres", "no such thing")
    assert find_postgres({"PATH": str(tmp_path)}, folders=[]) is None
    (tmp_path / "postgres").write_bytes(b"\x7fELF")
    assert find_postgres({"PATH": str(tmp_path)}, folders=[]) is None


def test_the_wrapper_script_for_root_and_rabbitmq_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails for other accounts. The script that it calls is not on PATH."""
    wrapper = a_program(tmp_path / "sbin" / "rabbitmq-server").parent
    behind = a_program(tmp_path / "lib" / "rabbitmq-server")
    a_program(tmp_path / "bin" / "erl")
    epmd = a_program(tmp_path / "bin" / "epmd")
    monkeypatch.setattr("podium.servers.binaries.RABBITMQ_WRAPPERS", (str(wrapper),))
    found = find_rabbitmq({"PATH": f"{wrapper}:{tmp_path / 'bin'}"}, folders=[str(behind.parent)])
    assert found is not None
    assert (found.server, found.epmd) == (behind, epmd)


def test_rabbitmq_without_erlang_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start script needs Erlang."""
    monkeypatch.setattr("podium.servers.binaries.SYSTEM_PATH", "")
    script = a_program(tmp_path / "rabbitmq-server")
    assert find_rabbitmq({"PATH": str(tmp_path)}, folders=[str(script.parent)]) is None


def test_the_port_mapper_in_the_erlang_installation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every package puts it on PATH."""
    monkeypatch.setattr("podium.servers.binaries.SYSTEM_PATH", "")
    a_program(tmp_path / "erlang" / "bin" / "erl")
    epmd = a_program(tmp_path / "erlang" / "erts-13.1" / "bin" / "epmd")
    a_program(tmp_path / "bin" / "rabbitmq-server")
    (tmp_path / "bin" / "erl").symlink_to(tmp_path / "erlang" / "bin" / "erl")
    found = find_rabbitmq({"PATH": str(tmp_path / "bin")}, folders=[])
    assert found is not None
    assert found.epmd == epmd
