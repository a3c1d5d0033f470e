from pathlib import Path

import pytest

from podium.servers.binaries import find_postgres, find_rabbitmq

NOWHERE: dict[str, str] = {"PATH": ""}


def a_program(path: Path, says: str = "") -> Path:
    """An executable that prints a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def a_postgres(bin_dir: Path, version: str) -> Path:
    """An installation of PostgreSQL, as far as looking for it goes."""
    a_program(bin_dir / "initdb")
    a_program(bin_dir / "postgres", f"postgres (PostgreSQL) {version} (Debian {version}-0+deb)")
    return bin_dir


def test_the_newest_version_in_the_usual_places_is_taken(tmp_path: Path) -> None:
    """By number: 9 is older than 15."""
    for version in ("9.6.24", "15.4", "14.9"):
        a_postgres(tmp_path / version / "bin", version)
    found = find_postgres(NOWHERE, places=[f"{tmp_path}/*/bin"])
    assert found is not None
    assert (found.bin_dir, found.major) == (tmp_path / "15.4" / "bin", 15)


def test_what_is_on_path_comes_first(tmp_path: Path) -> None:
    """Somebody has put it there on purpose."""
    a_postgres(tmp_path / "usual" / "16" / "bin", "16.1")
    mine = a_postgres(tmp_path / "mine", "14.1")
    found = find_postgres({"PATH": str(mine)}, places=[f"{tmp_path}/usual/*/bin"])
    assert found is not None
    assert found.bin_dir == mine


def test_a_link_on_path_leads_to_its_installation(tmp_path: Path) -> None:
    """A lone `postgres` is of no use without the `initdb` of the same version."""
    real = a_postgres(tmp_path / "15" / "bin", "15.1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").symlink_to(real / "postgres")
    found = find_postgres({"PATH": str(tmp_path / "bin")}, places=[])
    assert found is not None
    assert found.bin_dir == real


def test_too_old_a_version_on_path_is_passed_over(tmp_path: Path) -> None:
    """The search goes on in the usual places."""
    old = a_postgres(tmp_path / "old", "13.9")
    new = a_postgres(tmp_path / "16" / "bin", "16.0")
    found = find_postgres({"PATH": str(old)}, places=[f"{tmp_path}/*/bin"])
    assert found is not None
    assert found.bin_dir == new
    assert find_postgres({"PATH": str(old)}, places=[]) is None


def test_data_are_opened_by_the_version_that_made_them(tmp_path: Path) -> None:
    """A newer version beside it does not matter, and none is better than another."""
    for version in ("15.4", "16.1"):
        a_postgres(tmp_path / version / "bin", version)
    places = [f"{tmp_path}/*/bin"]
    found = find_postgres(NOWHERE, major=15, places=places)
    assert found is not None
    assert found.major == 15
    assert find_postgres(NOWHERE, major=14, places=places) is None


def test_what_does_not_run_is_no_postgres(tmp_path: Path) -> None:
    """Nor is a program that says something else."""
    a_program(tmp_path / "initdb")
    a_program(tmp_path / "postgres", "no such thing")
    assert find_postgres({"PATH": str(tmp_path)}, places=[]) is None
    (tmp_path / "postgres").write_bytes(b"\x7fELF")
    assert find_postgres({"PATH": str(tmp_path)}, places=[]) is None


def test_the_wrapper_for_root_and_rabbitmq_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works for nobody else; the script behind it is off PATH."""
    wrapper = a_program(tmp_path / "sbin" / "rabbitmq-server").parent
    behind = a_program(tmp_path / "lib" / "rabbitmq-server")
    a_program(tmp_path / "bin" / "erl")
    epmd = a_program(tmp_path / "bin" / "epmd")
    monkeypatch.setattr("podium.servers.binaries.RABBITMQ_WRAPPERS", (str(wrapper),))
    found = find_rabbitmq({"PATH": f"{wrapper}:{tmp_path / 'bin'}"}, places=[str(behind.parent)])
    assert found is not None
    assert (found.server, found.epmd) == (behind, epmd)


def test_rabbitmq_without_erlang_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script alone cannot start."""
    monkeypatch.setattr("podium.servers.binaries.USUAL_PATH", "")
    script = a_program(tmp_path / "rabbitmq-server")
    assert find_rabbitmq({"PATH": str(tmp_path)}, places=[str(script.parent)]) is None


def test_the_port_mapper_inside_erlang_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every packaging links it into PATH."""
    monkeypatch.setattr("podium.servers.binaries.USUAL_PATH", "")
    a_program(tmp_path / "erlang" / "bin" / "erl")
    epmd = a_program(tmp_path / "erlang" / "erts-13.1" / "bin" / "epmd")
    a_program(tmp_path / "bin" / "rabbitmq-server")
    (tmp_path / "bin" / "erl").symlink_to(tmp_path / "erlang" / "bin" / "erl")
    found = find_rabbitmq({"PATH": str(tmp_path / "bin")}, places=[])
    assert found is not None
    assert found.epmd == epmd
