import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from podium.servers import data_directory
from podium.servers.data_directory import choose_servers_dir, load_state, lock_data_dir
from podium.servers.errors import AlreadyRunning, ServersError
from podium.servers.ports import HIGHEST, LOWEST, free_ports, is_free


@pytest.fixture
def inaccessible(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers' accounts cannot enter any folder."""
    monkeypatch.setattr(data_directory, "can_enter", lambda _account, _folder: False)


def test_a_new_data_directory_gets_new_passwords(tmp_path: Path) -> None:
    """They are random, long and different for each server and each directory."""
    state = load_state(tmp_path)
    passwords = {
        state.server("postgres").password,
        state.server("rabbitmq").password,
        load_state(tmp_path).server("postgres").password,
    }
    assert len(passwords) == 3
    assert min(map(len, passwords)) >= 32


def test_saved_state_is_loaded_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """A second run uses the passwords and ports of the first."""
    state = load_state(tmp_path)
    state.server("postgres").ports = {"postgresql": 20_001}
    state.servers_dir = "."
    state.save()
    assert load_state(tmp_path) == state
    assert stat.S_IMODE((tmp_path / "servers.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["servers.json"]


@pytest.mark.parametrize("contents", ["", "{}", '{"place": null, "servers": {"postgres": {"colour": 1}}}'])
def test_a_damaged_state_file_is_not_overwritten(tmp_path: Path, contents: str) -> None:
    """It may be the only copy of the passwords."""
    (tmp_path / "servers.json").write_text(contents)
    with pytest.raises(ServersError, match="is damaged"):
        load_state(tmp_path)
    assert (tmp_path / "servers.json").read_text() == contents


def test_a_data_directory_can_be_moved_with_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of the data is saved relative to it."""
    monkeypatch.setattr(data_directory, "can_enter", lambda _account, _folder: True)
    (tmp_path / "a").mkdir()
    assert choose_servers_dir(load_state(tmp_path / "a"), ["postgres"]) == tmp_path / "a"
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert choose_servers_dir(load_state(moved), ["postgres"]) == moved


@pytest.mark.usefixtures("inaccessible")
def test_data_of_an_inaccessible_directory_are_stored_elsewhere(tmp_path: Path) -> None:
    """In the same folder at each start; a note in the directory names it."""
    data_dir, elsewhere = tmp_path / "closed", tmp_path / "var"
    data_dir.mkdir()
    chosen = choose_servers_dir(load_state(data_dir), ["postgres"], elsewhere)
    assert chosen == elsewhere / hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    assert str(chosen) in (data_dir / "servers").read_text()
    assert choose_servers_dir(load_state(data_dir), ["postgres"], elsewhere) == chosen


@pytest.mark.usefixtures("inaccessible")
def test_data_of_a_deleted_directory_are_kept(tmp_path: Path) -> None:
    """A new directory with the same path starts empty: the passwords of the old data were deleted."""
    for run in ("first", "second", "third"):
        data_dir = tmp_path / run / "closed"
        data_dir.mkdir(parents=True)
        data_dir = data_dir.rename(tmp_path / "closed")
        chosen = choose_servers_dir(load_state(data_dir), ["postgres"], tmp_path / "var")
        assert list(chosen.iterdir()) == []
        (chosen / run).touch()
        data_dir.rename(tmp_path / run / "closed")
    assert sorted(path.name for path in (tmp_path / "var").rglob("*") if path.is_file()) == ["second", "third"]


def test_a_second_podium_in_a_directory_is_refused_with_the_process_id(tmp_path: Path) -> None:
    """A process id that an ended process left in the file locks nothing."""
    (tmp_path / "podium.lock").write_text("1\n")
    refused = pytest.raises(AlreadyRunning, match=rf"already running in {tmp_path} \(pid {os.getpid()}\)\.")
    with lock_data_dir(tmp_path), refused, lock_data_dir(tmp_path):
        pytest.fail("two at a time")
    with lock_data_dir(tmp_path):
        pass


def test_ports_are_free_distinct_and_below_the_ephemeral_range() -> None:
    """free_ports returns one port for each name."""
    ports = free_ports(["a", "b", "c"])
    assert set(ports) == {"a", "b", "c"}
    assert len(set(ports.values())) == 3
    assert all(LOWEST <= port <= HIGHEST < 32_768 and is_free(port) for port in ports.values())


def test_a_port_with_a_listener_is_not_free() -> None:
    """Also on 0.0.0.0: connections to loopback would reach that listener."""
    port = free_ports(["a"])["a"]
    for address in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - the very case
        with socket.create_server((address, port)):
            assert not is_free(port)
    assert is_free(port)
