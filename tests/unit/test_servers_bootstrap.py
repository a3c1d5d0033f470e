"""The set-up and the environment that it creates, in artificial checkouts."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from podium import bootstrap, environment
from podium.servers.install import BOOTSTRAP
from podium.servers.machine import this_machine

ROOT = BOOTSTRAP.parent.parent


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which commands are recorded instead of run."""
    for name in (environment.LOCK, environment.PROJECT):
        (tmp_path / name).write_text("one==1\n")
    monkeypatch.setattr(environment, "_run", _record_command)
    return tmp_path


def _record_command(command: list[str], root: Path) -> None:
    venv = root / environment.VENV
    if "venv" in command:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
    else:
        assert (venv / environment.UNFINISHED).exists()
        (venv / "bin" / "podium").touch()
    with (root / "commands").open("a") as commands:
        commands.write(f"{command[2]}\n")


def _commands(checkout: Path) -> list[str]:
    """The commands since the last call."""
    recorded = checkout / "commands"
    lines = recorded.read_text().splitlines() if recorded.exists() else []
    recorded.unlink(missing_ok=True)
    return lines


def test_an_environment_is_created_once(checkout: Path) -> None:
    """The second call runs and prints nothing."""
    said: list[str] = []
    environment.make(checkout, said.append)
    assert _commands(checkout) == ["venv", "pip", "pip"]
    assert "Installing 1 packages" in said[1]
    environment.make(checkout, pytest.fail)
    assert _commands(checkout) == []


def test_a_changed_lock_file_updates_the_environment(checkout: Path) -> None:
    """It is not created again."""
    environment.make(checkout, lambda _line: None)
    _commands(checkout)
    (checkout / environment.LOCK).write_text("one==2\n")
    assert not environment.is_current(checkout)
    environment.make(checkout, lambda _line: None)
    assert _commands(checkout) == ["pip", "pip"]


@pytest.mark.parametrize("damage", ["unfinished", "moved", "no python", "a file"])
def test_a_broken_environment_is_replaced(checkout: Path, damage: str) -> None:
    """Incomplete, moved, without its Python, or not a folder."""
    environment.make(checkout, lambda _line: None)
    _commands(checkout)
    venv = checkout / environment.VENV
    (venv / "leftover").touch()
    if damage == "unfinished":
        (venv / environment.UNFINISHED).touch()
    elif damage == "moved":
        stamp = json.loads((venv / environment.STAMP).read_text())
        (venv / environment.STAMP).write_text(json.dumps({**stamp, "root": "/elsewhere"}))
    elif damage == "no python":
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to("/nowhere/python3")
    else:
        shutil.rmtree(venv)
        venv.touch()
    environment.make(checkout, lambda _line: None)
    assert _commands(checkout) == ["venv", "pip", "pip"]
    assert not (venv / "leftover").exists()
    assert environment.is_current(checkout)


def test_an_environment_created_by_the_user_is_used(checkout: Path) -> None:
    """Its contents stay."""
    _record_command(["python", "-m", "venv"], checkout)
    (checkout / "commands").unlink()
    (checkout / environment.VENV / "mine").touch()
    environment.make(checkout, lambda _line: None)
    assert _commands(checkout) == ["pip", "pip"]
    assert (checkout / environment.VENV / "mine").exists()


def test_a_failed_command_is_named(tmp_path: Path) -> None:
    """With its exit code; its output goes to the terminal."""
    with pytest.raises(environment.EnvironmentFailed, match=r"exit code 3.*\n.*exit\(3\)"):
        environment._run([sys.executable, "-c", "exit(3)"], tmp_path)


def test_an_old_python_gets_one_line(tmp_path: Path) -> None:
    """Not a syntax error: the version is checked before anything else is imported."""
    script = tmp_path / "bootstrap.py"
    script.write_text(
        "import sys\nsys.version_info = (3, 10, 2)\nsys.version = '3.10.2 (main)'\n" + BOOTSTRAP.read_text()
    )
    done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Podium needs Python 3.11 or newer; this is 3.10.2. Try: make PYTHON=python3.12\n"


def test_a_set_up_without_servers_does_not_search_for_them() -> None:
    """`--servers none` succeeds if the environment is current."""
    if not environment.is_current(ROOT):
        environment.make(ROOT, lambda _line: None)
    done = _bootstrap("--servers", "none", environ={"PATH": "/nowhere"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_ordinary_user_without_servers_gets_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the environment is created, with everything that is missing in one command."""
    user = replace(this_machine(), distribution="debian", version=(12,), has_apt=True, is_root=False)
    monkeypatch.setattr(bootstrap, "this_machine", lambda: replace(user, python_can_make_environments=False))
    monkeypatch.setattr(bootstrap, "missing_servers", lambda *_: ["rabbitmq-server"])
    monkeypatch.setattr(environment, "is_current", lambda _root: False)
    monkeypatch.setattr(environment, "make", lambda *_: pytest.fail("too early"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["bootstrap.py", "--servers", "run"])
    assert bootstrap.main() == 2
    assert f"sudo python3 -B {BOOTSTRAP} --install python3-venv rabbitmq-server" in capsys.readouterr().err


def test_only_known_packages_can_be_installed() -> None:
    """`--install` accepts only packages that Podium needs."""
    done = _bootstrap("--install", "vim", environ=dict(os.environ))
    assert done.returncode == 2
    assert "invalid choice: 'vim'" in done.stderr


def _bootstrap(*arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BOOTSTRAP), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd="/")
