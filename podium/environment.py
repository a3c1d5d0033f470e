"""The virtual environment of a checkout: exactly the versions of the lock file, repaired when it is half-made."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Say = Callable[[str], None]

VENV = ".venv"
LOCK = "requirements-dev.lock"
PROJECT = "pyproject.toml"
STAMP = "podium-setup.json"
UNFINISHED = "podium-setup.unfinished"

PATIENCE_SECONDS = 60  # for an interpreter to start, on a machine that is busy

# Settings of a user's shell that would send packages elsewhere.
MISLEADING = frozenset({"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT"})


class EnvironmentFailed(Exception):
    """The virtual environment could not be made."""

    exit_code = 1


def is_current(root: Path) -> bool:
    """Whether the environment of `root` was made completely from today's lock file, here, by this Python."""
    venv = root / VENV
    return not (venv / UNFINISHED).exists() and _stamped(venv) == _wanted(root) and (venv / "bin/podium").exists()


def make(root: Path, say: Say) -> None:
    """Makes the environment of `root`, brings it up to date, or does nothing.

    Raises:
        EnvironmentFailed: what failed has said why.
    """
    if is_current(root):
        return
    venv = root / VENV
    if not _usable(root):
        _remove(venv)
        python = _python_for_new()
        say(f"Making {VENV} with {python} ...")
        venv.mkdir()
        (venv / UNFINISHED).touch()
        _run([python, "-m", "venv", str(venv)], root)
    (venv / UNFINISHED).touch()
    _install(root, say)
    (venv / STAMP).write_text(json.dumps(_wanted(root)), encoding="utf-8")
    (venv / UNFINISHED).unlink()
    say(f"{VENV} is ready.")


def _install(root: Path, say: Say) -> None:
    pip = [str(root / VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    pip += ["--quiet", "--progress-bar", "off"]
    count = len(re.findall(r"^[A-Za-z0-9].*?==", (root / LOCK).read_text(encoding="utf-8"), re.MULTILINE))
    say(f"Installing {count} packages, each checked against its hash (a minute or so) ...")
    _run([*pip, "--require-hashes", "-r", LOCK], root)
    say("Installing Podium itself ...")
    _run([*pip, "--no-build-isolation", "--no-deps", "--editable", "."], root)


def _usable(root: Path) -> bool:
    """Whether packages can be installed on top: complete, not moved, and its Python still there.

    An environment without our stamp was made by hand: it is used, not thrown away.
    """
    venv = root / VENV
    version = _python_of(venv)
    if not version or (venv / UNFINISHED).exists() or not _has_pip(venv):
        return False
    stamped = _stamped(venv)
    return not stamped or (stamped.get("root"), stamped.get("python")) == (str(root), version)


def _python_of(venv: Path) -> str:
    """The version of the environment's own Python, such as `3.12`; empty if it is too old or does not start."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2] if sys.version_info >= (3, 11) else '')"
    return _answer([str(venv / "bin/python"), "-I", "-S", "-c", ask])


def _has_pip(venv: Path) -> bool:
    ask = "import importlib.util as u; print('yes' if u.find_spec('pip') else '')"
    return bool(_answer([str(venv / "bin/python"), "-I", "-c", ask]))


def _answer(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _wanted(root: Path) -> dict[str, str]:
    contents = b"\0".join((root / name).read_bytes() for name in (LOCK, PROJECT))
    return {"root": str(root), "python": _python_of(root / VENV), "inputs": hashlib.sha256(contents).hexdigest()}


def _stamped(venv: Path) -> dict[str, str]:
    """What the finished set-up noted; empty if there was none."""
    try:
        noted = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _python_for_new() -> str:
    """This Python, or the one it stands on: ours may live in the very environment that is made anew."""
    own = Path(sys.base_prefix) / "bin" / "python{}.{}".format(*sys.version_info[:2])
    return str(own) if sys.prefix != sys.base_prefix and own.exists() else sys.executable


def _remove(venv: Path) -> None:
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(venv)


def _run(command: Sequence[str], root: Path) -> None:
    """Runs with its output shown as it comes."""
    environ = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    code = subprocess.run(command, cwd=root, env=environ, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        raise EnvironmentFailed(f"This failed with exit code {code}; its messages above say why:\n{' '.join(command)}")
