import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from podium.servers import place
from podium.servers.errors import AlreadyRunning, ServersError
from podium.servers.locks import only_podium
from podium.servers.memory import recall
from podium.servers.ports import HIGHEST, LOWEST, free_ports, is_free


@pytest.fixture
def barred(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers' accounts cannot enter any folder."""
    monkeypatch.setattr(place, "can_enter", lambda _account, _folder: False)


def test_a_new_folder_remembers_nothing_and_makes_different_passwords(tmp_path: Path) -> None:
    """Nothing is a default."""
    memory = recall(tmp_path)
    passwords = {
        memory.of("postgres").password,
        memory.of("rabbitmq").password,
        recall(tmp_path).of("postgres").password,
    }
    assert len(passwords) == 3
    assert min(map(len, passwords)) >= 32


def test_what_was_saved_is_recalled_and_only_the_owner_can_read_it(tmp_path: Path) -> None:
    """Passwords and ports of a second run are those of the first."""
    memory = recall(tmp_path)
    memory.of("postgres").ports = {"postgresql": 20_001}
    memory.place = "."
    memory.save()
    assert recall(tmp_path) == memory
    assert stat.S_IMODE((tmp_path / "servers.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["servers.json"]


@pytest.mark.parametrize("contents", ["", "{}", '{"place": null, "servers": {"postgres": {"colour": 1}}}'])
def test_a_damaged_memory_is_not_overwritten(tmp_path: Path, contents: str) -> None:
    """It may be all there is of the passwords."""
    (tmp_path / "servers.json").write_text(contents)
    with pytest.raises(ServersError, match="is damaged"):
        recall(tmp_path)
    assert (tmp_path / "servers.json").read_text() == contents


def test_data_lie_inside_the_folder_which_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is remembered in a form that survives the move."""
    monkeypatch.setattr(place, "can_enter", lambda _account, _folder: True)
    (tmp_path / "a").mkdir()
    assert place.choose(recall(tmp_path / "a"), ["postgres"]) == tmp_path / "a"
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert place.choose(recall(moved), ["postgres"]) == moved


@pytest.mark.usefixtures("barred")
def test_data_of_a_barred_folder_lie_elsewhere_and_a_note_says_so(tmp_path: Path) -> None:
    """In a folder named after the path, the same at each start."""
    data_dir, elsewhere = tmp_path / "closed", tmp_path / "var"
    data_dir.mkdir()
    chosen = place.choose(recall(data_dir), ["postgres"], elsewhere)
    assert chosen == elsewhere / hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    assert str(chosen) in (data_dir / "servers").read_text()
    assert place.choose(recall(data_dir), ["postgres"], elsewhere) == chosen


@pytest.mark.usefixtures("barred")
def test_data_of_a_deleted_folder_are_kept_aside(tmp_path: Path) -> None:
    """A new folder of the same path starts afresh: the passwords of the old data are gone with it."""
    for run in ("first", "second", "third"):
        data_dir = tmp_path / run / "closed"
        data_dir.mkdir(parents=True)
        data_dir = data_dir.rename(tmp_path / "closed")
        chosen = place.choose(recall(data_dir), ["postgres"], tmp_path / "var")
        assert list(chosen.iterdir()) == []
        (chosen / run).touch()
        data_dir.rename(tmp_path / run / "closed")
    assert sorted(path.name for path in (tmp_path / "var").rglob("*") if path.is_file()) == ["second", "third"]


def test_a_second_holder_of_a_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    """A number left by a process that is gone holds nothing."""
    (tmp_path / "podium.lock").write_text("1\n")
    refused = pytest.raises(AlreadyRunning, match=rf"already running in {tmp_path} \(pid {os.getpid()}\)\.")
    with only_podium(tmp_path), refused, only_podium(tmp_path):
        pytest.fail("two at a time")
    with only_podium(tmp_path):
        pass


def test_ports_are_free_distinct_and_below_the_ephemeral_range() -> None:
    """One for each name."""
    ports = free_ports(["a", "b", "c"])
    assert set(ports) == {"a", "b", "c"}
    assert len(set(ports.values())) == 3
    assert all(LOWEST <= port <= HIGHEST < 32_768 and is_free(port) for port in ports.values())


def test_a_port_on_which_somebody_listens_is_not_free() -> None:
    """On any address: a server on 0.0.0.0 would take our connections."""
    port = free_ports(["a"])["a"]
    for address in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - the very case
        with socket.create_server((address, port)):
            assert not is_free(port)
    assert is_free(port)
