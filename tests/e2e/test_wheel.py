import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from podium.asyncapi import contract_files
from services.settings import Settings
from tests.support.commands import project_version
from tests.support.processes import ROOT, environment
from tests.support.sdk_environment import install_locked
from tests.unit.test_dockerfile import copied

PIP: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built as in the Dockerfile: from the same files, with the locked build backend."""
    checkout, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in copied():
        source, target = ROOT / name, checkout / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, target)
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, checkout], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `podium` command of an environment with only the locked packages and the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    install_locked(folder / "bin" / "python", ROOT / "requirements.lock")
    subprocess.run([*PIP, "--python", folder, "install", "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin" / "podium"


def run(command: list[Path | str], folder: Path, settings: Settings) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed Podium outside the checkout."""
    env = environment(settings)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_wheel_holds_data_and_migrations(wheel: Path) -> None:
    """The contracts that the API serves, and all migrations, but no stray files."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name, content in contract_files().items():
            assert archive.read(f"contracts/{name}").decode() == content
    versions = Path("services/migrations/versions")
    assert {str(versions / path.name) for path in (ROOT / versions).glob("*.py")} <= names
    assert not any("__pycache__" in name or "node_modules" in name or name.startswith("tests/") for name in names)


@pytest.mark.timeout(300)  # installs every locked package
@pytest.mark.usefixtures("broker")
async def test_the_wheel_runs_with_locked_packages_alone(
    installed: Path, tmp_path: Path, settings: Settings, engine: AsyncEngine
) -> None:
    """Without development tools and checkout: help, version, a first migration, and a second one without effect."""
    assert run([installed, "--version"], tmp_path, settings).stdout == f"podium {project_version()}\n"
    for command in ("api", "worker", "migrate"):
        helped = run([installed, command, "--help"], tmp_path, settings)
        assert (helped.returncode, helped.stderr) == (0, "")
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    for said in ("Schema migrated from nothing", "Schema is at revision"):
        migrated = run([installed, "migrate"], tmp_path, settings)
        assert (migrated.returncode, migrated.stderr) == (0, "")
        assert said in migrated.stdout
