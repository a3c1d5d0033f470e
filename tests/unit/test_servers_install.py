import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from podium.servers.errors import InstallFailed, ServersMissing
from podium.servers.install import BOOTSTRAP, Purpose, missing_servers, obtain
from podium.servers.machine import Machine, docker_answers, this_machine

BOTH = {"PODIUM_DATABASE_URL": "postgresql://x", "PODIUM_AMQP_URL": "amqp://x"}


def a_machine(**facts: object) -> Machine:
    """Debian 12, as root, with everything but what a test changes."""
    usual: dict[str, object] = {
        "distribution": "debian",
        "version": (12,),
        "name": "Debian GNU/Linux 12 (bookworm)",
        "is_root": True,
        "has_apt": True,
        "python_can_make_environments": True,
    }
    return Machine(**{**usual, **facts})  # type: ignore[arg-type]


class Lacking:
    """What is lacking until it is installed."""

    def __init__(self, *packages: str) -> None:
        self.packages = list(packages)
        self.installed: list[str] = []

    def __call__(self) -> list[str]:
        """What is lacking now."""
        return [package for package in self.packages if package not in self.installed]

    def install(self, packages: Sequence[str], say: object) -> None:
        """Stands for the package manager."""
        assert callable(say)
        self.installed += packages


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no server program is found."""
    monkeypatch.setattr("podium.servers.install.find_postgres", lambda _environ: None)
    monkeypatch.setattr("podium.servers.install.find_rabbitmq", lambda _environ: None)


@pytest.mark.usefixtures("bare")
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
    """Servers that are named need no programs; containers serve the tests alone."""
    assert missing_servers(environ, purpose, lambda: docker) == missing


def test_docker_is_not_asked_where_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set-up that has nothing to do stays quick."""
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
def test_whose_packages_are_known(distribution: str, version: tuple[int, ...], known: bool) -> None:  # noqa: FBT001
    """Only releases whose own packages are new enough."""
    assert a_machine(distribution=distribution, version=version).packages_are_known is known


def test_root_installs_what_is_missing_and_says_so() -> None:
    """All in one go."""
    lacking = Lacking("postgresql", "rabbitmq-server")
    said: list[str] = []
    obtain(lacking, a_machine(), said.append, lacking.install)
    assert lacking.installed == ["postgresql", "rabbitmq-server"]
    assert said == [
        "Not on this machine yet: postgresql, rabbitmq-server. Installing; no service is started or enabled."
    ]


def test_nothing_is_installed_where_nothing_is_missing() -> None:
    """Whoever runs it, on whatever system."""
    lacking = Lacking()
    obtain(lacking, a_machine(is_root=False, distribution="fedora"), pytest.fail, lacking.install)
    assert not lacking.installed


def test_an_ordinary_user_gets_the_exact_command() -> None:
    """And exit code 2; nothing is installed, and the command says `sudo` but we do not."""
    lacking = Lacking("python3-venv", "postgresql", "rabbitmq-server")
    with pytest.raises(ServersMissing) as missing:
        obtain(lacking, a_machine(is_root=False), pytest.fail, lacking.install)
    assert missing.value.exit_code == 2
    assert f"    sudo python3 -B {BOOTSTRAP} --install python3-venv postgresql rabbitmq-server\n" in str(missing.value)
    assert BOOTSTRAP.is_file()
    assert not lacking.installed


def test_elsewhere_one_is_told_what_to_install() -> None:
    """Root or not: packages of unknown systems are not guessed."""
    with pytest.raises(ServersMissing) as missing:
        obtain(
            Lacking("postgresql", "rabbitmq-server"), a_machine(distribution="fedora", name="Fedora 40"), pytest.fail
        )
    assert missing.value.exit_code == 2
    assert str(missing.value) == (
        "Podium does not know the packages of Fedora 40. Install PostgreSQL 14 or newer (`postgres` and `initdb`"
        " on PATH) and RabbitMQ 3.10 or newer (`rabbitmq-server` and Erlang's `erl` on PATH), or set"
        " PODIUM_DATABASE_URL and PODIUM_AMQP_URL to servers that you have, or run: docker compose up"
    )


def test_an_installation_that_did_not_help_is_reported() -> None:
    """Instead of failing later with something less clear."""
    with pytest.raises(InstallFailed, match="still not usable: postgresql"):
        obtain(Lacking("postgresql"), a_machine(), lambda _line: None, lambda _packages, _say: None)


def test_os_release_is_read(tmp_path: Path) -> None:
    """Quoted or not; a missing file means an unknown system."""
    release = tmp_path / "os-release"
    release.write_text('# comment\nID=ubuntu\nVERSION_ID="24.04"\n\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    machine = this_machine(release)
    assert (machine.distribution, machine.version, machine.name) == ("ubuntu", (24, 4), "Ubuntu 24.04.1 LTS")
    assert this_machine(tmp_path / "missing").distribution == ""


@pytest.mark.parametrize(("status", "answers"), [("200 OK", True), ("500 Internal Server Error", False)])
def test_a_docker_engine_is_recognised_by_its_answer(tmp_path: Path, status: str, answers: bool) -> None:  # noqa: FBT001
    """The socket's being there is not enough."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))
        engine.listen()
        answering = threading.Thread(target=_answer_once, args=(engine, status))
        answering.start()
        assert docker_answers({"DOCKER_HOST": f"unix://{path}"}) is answers
        answering.join()


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "tcp://nonsense", "ssh://there"])
def test_without_an_engine_there_is_no_docker(host: str) -> None:
    """A client alone, or an address that leads nowhere, starts no container."""
    assert not docker_answers({"DOCKER_HOST": host})


def _answer_once(engine: socket.socket, status: str) -> None:
    asking, _ = engine.accept()
    with asking:
        asking.recv(1024)
        asking.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nOK".encode())
