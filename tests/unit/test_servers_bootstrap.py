"""The set-up as it is run, and the environment that it makes, in made-up checkouts."""

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
    """A checkout whose environment is made without pip: what would be installed is noted instead."""
    for name in (environment.LOCK, environment.PROJECT):
        (tmp_path / name).write_text("one==1\n")
    monkeypatch.setattr(environment, "_run", _pretend)
    return tmp_path


def _pretend(command: list[str], root: Path) -> None:
    venv = root / environment.VENV
    if "venv" in command:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
    else:
        assert (venv / environment.UNFINISHED).exists()
        (venv / "bin" / "podium").touch()
    with (root / "ran").open("a") as ran:
        ran.write(f"{command[2]}\n")


def _ran(checkout: Path) -> list[str]:
    """What was run since the last question."""
    noted = checkout / "ran"
    lines = noted.read_text().splitlines() if noted.exists() else []
    noted.unlink(missing_ok=True)
    return lines


def test_an_environment_is_made_once(checkout: Path) -> None:
    """The second time nothing runs and nothing is said."""
    said: list[str] = []
    environment.make(checkout, said.append)
    assert _ran(checkout) == ["venv", "pip", "pip"]
    assert "Installing 1 packages" in said[1]
    environment.make(checkout, pytest.fail)
    assert _ran(checkout) == []


def test_a_changed_lock_file_is_installed_on_top(checkout: Path) -> None:
    """The environment is not thrown away."""
    environment.make(checkout, lambda _line: None)
    _ran(checkout)
    (checkout / environment.LOCK).write_text("one==2\n")
    assert not environment.is_current(checkout)
    environment.make(checkout, lambda _line: None)
    assert _ran(checkout) == ["pip", "pip"]


@pytest.mark.parametrize("damage", ["unfinished", "moved", "no python", "a file"])
def test_a_broken_environment_is_made_anew(checkout: Path, damage: str) -> None:
    """Half-made, copied from elsewhere, or with a Python that is gone."""
    environment.make(checkout, lambda _line: None)
    _ran(checkout)
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
    assert _ran(checkout) == ["venv", "pip", "pip"]
    assert not (venv / "leftover").exists()
    assert environment.is_current(checkout)


def test_an_environment_made_by_hand_is_used(checkout: Path) -> None:
    """What is in it stays."""
    _pretend(["python", "-m", "venv"], checkout)
    (checkout / "ran").unlink()
    (checkout / environment.VENV / "mine").touch()
    environment.make(checkout, lambda _line: None)
    assert _ran(checkout) == ["pip", "pip"]
    assert (checkout / environment.VENV / "mine").exists()


def test_what_pip_says_is_not_hidden(tmp_path: Path) -> None:
    """The error names the command that failed."""
    with pytest.raises(environment.EnvironmentFailed, match=r"exit code 3.*\n.*exit\(3\)"):
        environment._run([sys.executable, "-c", "exit(3)"], tmp_path)


def test_an_old_python_gets_one_sentence(tmp_path: Path) -> None:
    """Not a syntax error, and nothing of the rest is imported."""
    script = tmp_path / "bootstrap.py"
    script.write_text(
        "import sys\nsys.version_info = (3, 10, 2)\nsys.version = '3.10.2 (main)'\n" + BOOTSTRAP.read_text()
    )
    done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Podium needs Python 3.11 or newer, this is 3.10.2: make PYTHON=python3.12\n"


def test_a_set_up_with_nothing_to_do_needs_no_servers_for_lint() -> None:
    """`--servers none` succeeds wherever the environment is current."""
    if not environment.is_current(ROOT):
        environment.make(ROOT, lambda _line: None)
    done = _bootstrap("--servers", "none", environ={"PATH": "/nowhere"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_ordinary_user_without_servers_gets_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a minute is spent on the environment, and with all that is missing in one command."""
    user = replace(this_machine(), distribution="debian", version=(12,), has_apt=True, is_root=False)
    monkeypatch.setattr(bootstrap, "this_machine", lambda: replace(user, python_can_make_environments=False))
    monkeypatch.setattr(bootstrap, "missing_servers", lambda *_: ["rabbitmq-server"])
    monkeypatch.setattr(environment, "is_current", lambda _root: False)
    monkeypatch.setattr(environment, "make", lambda *_: pytest.fail("too early"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["bootstrap.py", "--servers", "run"])
    assert bootstrap.main() == 2
    assert f"sudo python3 -B {BOOTSTRAP} --install python3-venv rabbitmq-server" in capsys.readouterr().err


def test_nothing_else_is_installed_for_us() -> None:
    """And only packages that Podium needs."""
    done = _bootstrap("--install", "vim", environ=dict(os.environ))
    assert done.returncode == 2
    assert "invalid choice: 'vim'" in done.stderr


def _bootstrap(*arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BOOTSTRAP), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd="/")
