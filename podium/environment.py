"""The virtual environment of a checkout, with the versions of the lock file. Repairs an incomplete environment."""

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

PYTHON_TIMEOUT_SECONDS = 60  # an interpreter may start slowly on a busy machine

# Variables of a user's shell that would install packages elsewhere.
IGNORED_VARIABLES = frozenset({"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT"})


class EnvironmentFailed(Exception):
    """The virtual environment could not be created."""

    exit_code = 1


def is_current(root: Path) -> bool:
    """Whether the environment is complete: created in `root`, from the current lock file, for its current Python."""
    venv = root / VENV
    return (
        not (venv / UNFINISHED).exists()
        and _read_stamp(venv) == _current_stamp(root)
        and (venv / "bin/podium").exists()
    )


def make(root: Path, say: Say) -> None:
    """Creates or updates the environment of `root`; does nothing if it is current.

    Raises:
        EnvironmentFailed: a command failed; its output, printed before, gives the reason.
    """
    if is_current(root):
        return
    venv = root / VENV
    if not _usable(root):
        _remove(venv)
        python = _python_for_new()
        say(f"Creating {VENV} with {python} ...")
        venv.mkdir()
        (venv / UNFINISHED).touch()
        _run([python, "-m", "venv", str(venv)], root)
    (venv / UNFINISHED).touch()
    _install(root, say)
    (venv / STAMP).write_text(json.dumps(_current_stamp(root)), encoding="utf-8")
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
    """Whether packages can be installed into the environment: it is complete, in its place, and its Python works.

    An environment without a stamp was created by the user: it is kept and used.
    """
    venv = root / VENV
    version = _python_of(venv)
    if not version or (venv / UNFINISHED).exists() or not _has_pip(venv):
        return False
    stamp = _read_stamp(venv)
    return not stamp or (stamp.get("root"), stamp.get("python")) == (str(root), version)


def _python_of(venv: Path) -> str:
    """The version of the environment's Python, such as `3.12`; empty if it is too old or does not start."""
    program = "import sys; print('%d.%d' % sys.version_info[:2] if sys.version_info >= (3, 11) else '')"
    return _output_of([str(venv / "bin/python"), "-I", "-S", "-c", program])


def _has_pip(venv: Path) -> bool:
    program = "import importlib.util as u; print('yes' if u.find_spec('pip') else '')"
    return bool(_output_of([str(venv / "bin/python"), "-I", "-c", program]))


def _output_of(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PYTHON_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _current_stamp(root: Path) -> dict[str, str]:
    contents = b"\0".join((root / name).read_bytes() for name in (LOCK, PROJECT))
    return {"root": str(root), "python": _python_of(root / VENV), "inputs": hashlib.sha256(contents).hexdigest()}


def _read_stamp(venv: Path) -> dict[str, str]:
    """The stamp that the last complete set-up wrote; empty if there is none."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _python_for_new() -> str:
    """This Python, or its base Python if this one may be part of the environment to replace."""
    base = Path(sys.base_prefix) / "bin" / "python{}.{}".format(*sys.version_info[:2])
    return str(base) if sys.prefix != sys.base_prefix and base.exists() else sys.executable


def _remove(venv: Path) -> None:
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(venv)


def _run(command: Sequence[str], root: Path) -> None:
    """Runs the command; its output goes to the terminal."""
    environ = {name: value for name, value in os.environ.items() if name not in IGNORED_VARIABLES}
    code = subprocess.run(command, cwd=root, env=environ, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        raise EnvironmentFailed(
            f"This command failed with exit code {code}; its messages above give the reason:\n{' '.join(command)}"
        )
