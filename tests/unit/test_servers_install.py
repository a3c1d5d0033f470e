import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from podium.servers.errors import InstallFailed, ServersMissing
from podium.servers.install import BOOTSTRAP, Purpose, install_missing, missing_servers
from podium.servers.machine import Machine, docker_answers, this_machine

BOTH = {"PODIUM_DATABASE_URL": "postgresql://x", "PODIUM_AMQP_URL": "amqp://x"}


def a_machine(**facts: object) -> Machine:
    """Debian 12 with root rights and all tools, except what a test changes."""
    usual: dict[str, object] = {
        "distribution": "debian",
        "version": (12,),
        "name": "Debian GNU/Linux 12 (bookworm)",
        "is_root": True,
        "has_apt": True,
        "python_can_make_environments": True,
    }
    return Machine(**{**usual, **facts})  # type: ignore[arg-type]


class MissingPackages:
    """Packages that are missing until they are installed."""

    def __init__(self, *packages: str) -> None:
        self.packages = list(packages)
        self.installed: list[str] = []

    def __call__(self) -> list[str]:
        """The packages that are still missing."""
        return [package for package in self.packages if package not in self.installed]

    def install(self, packages: Sequence[str], say: object) -> None:
        """Take the place of the package manager."""
        assert callable(say)
        self.installed += packages


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without server programs."""
    monkeypatch.setattr("podium.servers.install.find_postgres", lambda _environ: None)
    monkeypatch.setattr("podium.servers.install.find_rabbitmq", lambda _environ: None)


@pytest.mark.usefixtures("no_servers")
@pytest.mark.parametrize(
    ("environ", "purpose", "docker", "missing"),
    [
        ({}, Purpose.RUN, False, ["postgresql", "rabbitmq-server"]),
        ({}, Purpose.RUN, True, ["postgresql", "rabbitmq-server"]),
        ({}, Purpose.TEST, False, ["postgresql", "rabbitmq-server"]),
        ({}, Purpose.TEST, True, []),
        ({}, Purpose.NONE, False, []),
        (BOTH, Purpose.RUN, False, []),
        ({"PODIUM_AMQP_URL": "amqp://x"}, Purpose.RUN, False, ["postgresql"]),
        ({"PODIUM_DATABASE_URL": ""}, Purpose.TEST, False, ["postgresql", "rabbitmq-server"]),
    ],
)
def test_what_is_missing(environ: dict[str, str], purpose: Purpose, docker: bool, missing: list[str]) -> None:  # noqa: FBT001
    """A server with an address needs no programs. Only tests use containers."""
    assert missing_servers(environ, purpose, lambda: docker) == missing


def test_docker_is_not_asked_if_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set-up with nothing to do stays quick."""
    monkeypatch.setattr("podium.servers.install.find_postgres", lambda _environ: object())
    monkeypatch.setattr("podium.servers.install.find_rabbitmq", lambda _environ: object())
    assert missing_servers({}, Purpose.TEST, lambda: pytest.fail("asked")) == []


@pytest.mark.parametrize(
    ("distribution", "version", "known"),
    [
        ("debian", (12,), True),
        ("debian", (13,), True),
        ("debian", (11,), False),
        ("debian", (), False),
        ("ubuntu", (24, 4), True),
        ("ubuntu", (22, 4), False),
        ("fedora", (40,), False),
        ("", (), False),
    ],
)
def test_distributions_with_known_packages(distribution: str, version: tuple[int, ...], known: bool) -> None:  # noqa: FBT001
    """Only releases with packages that are new enough."""
    assert a_machine(distribution=distribution, version=version).packages_are_known is known


def test_root_installs_what_is_missing_and_says_so() -> None:
    """In one installation."""
    missing_packages = MissingPackages("postgresql", "rabbitmq-server")
    said: list[str] = []
    install_missing(missing_packages, a_machine(), said.append, missing_packages.install)
    assert missing_packages.installed == ["postgresql", "rabbitmq-server"]
    assert said == [
        "Missing on this machine: postgresql, rabbitmq-server. Installing them; no service is started or enabled."
    ]


def test_nothing_is_installed_if_nothing_is_missing() -> None:
    """With any account, on any system."""
    missing_packages = MissingPackages()
    install_missing(
        missing_packages, a_machine(is_root=False, distribution="fedora"), pytest.fail, missing_packages.install
    )
    assert not missing_packages.installed


def test_an_ordinary_user_gets_the_exact_command() -> None:
    """And exit code 2. Nothing is installed: Podium does not run sudo itself."""
    missing_packages = MissingPackages("python3-venv", "postgresql", "rabbitmq-server")
    with pytest.raises(ServersMissing) as missing:
        install_missing(missing_packages, a_machine(is_root=False), pytest.fail, missing_packages.install)
    assert missing.value.exit_code == 2
    assert f"    sudo python3 -B {BOOTSTRAP} --install python3-venv postgresql rabbitmq-server\n" in str(missing.value)
    assert BOOTSTRAP.is_file()
    assert not missing_packages.installed


def test_on_other_systems_the_error_names_the_programs_to_install() -> None:
    """Also for root: Podium does not guess the packages of unknown systems."""
    with pytest.raises(ServersMissing) as missing:
        install_missing(
            MissingPackages("postgresql", "rabbitmq-server"),
            a_machine(distribution="fedora", name="Fedora 40"),
            pytest.fail,
        )
    assert missing.value.exit_code == 2
    assert str(missing.value) == (
        "Podium does not know the packages of Fedora 40. Install PostgreSQL 14 or newer (`postgres` and `initdb`"
        " on PATH) and RabbitMQ 3.10 or newer (`rabbitmq-server` and Erlang's `erl` on PATH), or set"
        " PODIUM_DATABASE_URL and PODIUM_AMQP_URL to the addresses of existing servers, or run: docker compose up"
    )


def test_packages_still_missing_after_the_installation_are_reported() -> None:
    """At once, and not later with a less clear error."""
    with pytest.raises(InstallFailed, match="still not usable: postgresql"):
        install_missing(MissingPackages("postgresql"), a_machine(), lambda _line: None, lambda _packages, _say: None)


def test_os_release_is_read(tmp_path: Path) -> None:
    """With and without quotes. A missing file means an unknown system."""
    release = tmp_path / "os-release"
    release.write_text('# comment\nID=ubuntu\nVERSION_ID="24.04"\n\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    machine = this_machine(release)
    assert (machine.distribution, machine.version, machine.name) == ("ubuntu", (24, 4), "Ubuntu 24.04.1 LTS")
    assert this_machine(tmp_path / "missing").distribution == ""


@pytest.mark.parametrize(("status", "answers"), [("200 OK", True), ("500 Internal Server Error", False)])
def test_a_docker_engine_is_recognised_by_its_answer(tmp_path: Path, status: str, answers: bool) -> None:  # noqa: FBT001
    """An existing socket is not enough."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))
        engine.listen()
        engine_thread = threading.Thread(target=_answer_once, args=(engine, status))
        engine_thread.start()
        assert docker_answers({"DOCKER_HOST": f"unix://{path}"}) is answers
        engine_thread.join()


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "tcp://nonsense", "ssh://there"])
def test_without_an_engine_there_is_no_docker(host: str) -> None:
    """An installed client, or an address where no engine listens, is not enough."""
    assert not docker_answers({"DOCKER_HOST": host})


def _answer_once(engine: socket.socket, status: str) -> None:
    connection, _ = engine.accept()
    with connection:
        connection.recv(1024)
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nOK".encode())
