"""TLS to PostgreSQL and RabbitMQ with a private authority: PODIUM_DATABASE_CA_FILE and PODIUM_AMQP_CA_FILE."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from pydantic import SecretStr, ValidationError
from sqlalchemy import text
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs
from yarl import URL

from podium.migration import migrate_all
from podium.servers import ServersError
from services.settings import Settings
from services.storage.database import Sessions, close_engine, make_engine
from services.storage.driver import PreparedConnection
from services.tls import broker_url
from tests.integration.api.client import running_api
from tests.integration.cli.terminal import Terminal
from tests.integration.workers.conftest import Work, working
from tests.support.secured_servers import SecuredServers
from tests.support.waiting import eventually, eventually_rows
from workers.runner import run_drainer, run_registrar, run_relay

OTHER_HOST = "127.0.0.1"
# RabbitMQ sends the authority's certificate as well.
UNTRUSTED = "certificate is refused: unable to get local issuer certificate"
UNTRUSTED_CHAIN = "certificate is refused: self-signed certificate in certificate chain"
WRONG_HOST = "certificate is refused: IP address mismatch"


@pytest.fixture(scope="module")
def other_ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an authority that signed neither certificate."""
    path = tmp_path_factory.mktemp("other") / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


@pytest_asyncio.fixture(scope="module")
async def over_tls(secured: SecuredServers) -> Settings:
    """Settings that reach both servers over TLS; schema and queues are there."""
    settings = Settings(
        database_url=SecretStr(secured.database_url),
        database_ca_file=str(secured.ca_file),
        amqp_url=SecretStr(secured.amqps_url),
        amqp_ca_file=str(secured.ca_file),
        secret_key=SecretStr("a test's secret key"),
    )
    await migrate_all(settings, lambda _: None)
    return settings


@pytest.fixture
def wrong(over_tls: Settings, other_ca_file: Path) -> dict[str, tuple[Settings, str]]:
    """Settings with a wrong authority or host for one server, and what is said about its certificate."""
    database = make_url(over_tls.database_url.get_secret_value()).set(host=OTHER_HOST)
    broker = URL(over_tls.amqp_url.get_secret_value()).with_host(OTHER_HOST)
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "database authority": ({"database_ca_file": str(other_ca_file)}, UNTRUSTED),
        "database host": ({"database_url": SecretStr(database.render_as_string(hide_password=False))}, WRONG_HOST),
        "broker authority": ({"amqp_ca_file": str(other_ca_file)}, UNTRUSTED_CHAIN),
        "broker host": ({"amqp_url": SecretStr(str(broker))}, WRONG_HOST),
    }
    return {name: (over_tls.model_copy(update=change), said) for name, (change, said) in changes.items()}


WRONG = pytest.mark.parametrize("case", ["database authority", "database host", "broker authority", "broker host"])


async def test_connections_to_the_database_are_encrypted(over_tls: Settings) -> None:
    """G80: The server itself says so."""
    engine = make_engine(over_tls, application_name="tests", pool_size=1)
    async with engine.connect() as connection:
        query = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        (encrypted, version) = (await connection.execute(text(query))).one()
    await close_engine(engine)
    assert (encrypted, version) == (True, "TLSv1.3")


@pytest.mark.parametrize("case", ["database authority", "database host"])
async def test_connections_with_prepared_statements_are_encrypted(
    over_tls: Settings, wrong: dict[str, tuple[Settings, str]], case: str
) -> None:
    """G80: those that read routes, agents and keys, too; a wrong certificate ends them before anything is sent."""

    def connection(settings: Settings) -> PreparedConnection:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        return PreparedConnection(settings, lambda: (query,), application_name="tests", options={})

    right = connection(over_tls)
    assert [row["ssl"] for row in await right.fetch(0)] == [True]
    right.drop()
    settings, said = wrong[case]
    with pytest.raises(ssl.SSLCertVerificationError, match=said.removeprefix("certificate is refused: ")):
        await connection(settings).fetch(0)


async def test_all_parts_work_over_tls(over_tls: Settings, tmp_path: Path) -> None:
    """G80: `podium register`, the workers, the API and `podium doctor` with the right authority."""
    environment = {
        "PODIUM_DATABASE_URL": over_tls.database_url.get_secret_value(),
        "PODIUM_DATABASE_CA_FILE": over_tls.database_ca_file,
        "PODIUM_AMQP_URL": over_tls.amqp_url.get_secret_value(),
        "PODIUM_AMQP_CA_FILE": over_tls.amqp_ca_file,
        "PODIUM_SECRET_KEY": "x" * 32,
    }
    engine = make_engine(over_tls, application_name="tests", pool_size=1)
    sessions = Sessions(engine)
    async with (
        running_api(over_tls) as api,
        working(run_registrar, over_tls),
        working(run_relay, over_tls),
        working(run_drainer, over_tls),
    ):
        terminal = Terminal(tmp_path, {**environment, "PODIUM_API_URL": api.url})
        pod = ["--name", "bot", "--acp-url", "http://10.0.0.7:8000", "--deployment", "bot-v1"]
        assert "applied" in (await terminal.done("register", *pod)).err
        await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 4)
        ready = (await api.get("/health/ready")).json["parts"]
        assert (ready["database"]["ok"], ready["broker"]["ok"]) == (True, True)
        doctor = await terminal.done("doctor")
        assert "failed" not in doctor.out
    await close_engine(engine)


@WRONG
async def test_migrate_refuses_a_wrong_certificate(wrong: dict[str, tuple[Settings, str]], case: str) -> None:
    """G80: The error says what is wrong with the certificate, and which variables to check."""
    settings, said = wrong[case]
    with pytest.raises(ServersError, match=f"{said}.*_CA_FILE"):
        await migrate_all(settings, lambda _: None)


@WRONG
async def test_workers_refuse_a_wrong_certificate(wrong: dict[str, tuple[Settings, str]], case: str) -> None:
    """G80: A worker logs why it does not connect, and tries again."""
    settings, said = wrong[case]
    works: list[Work] = [run_relay] if "database" in case else [run_relay, run_drainer, run_registrar]
    for work in works:
        with capture_logs() as logs:
            async with working(work, settings):

                async def refused(logs: Any = logs) -> bool:
                    return any(said in str(line.get("certificate")) for line in logs)

                await eventually(refused, f"{work} refuses the certificate")


@WRONG
async def test_the_api_refuses_a_wrong_certificate(wrong: dict[str, tuple[Settings, str]], case: str) -> None:
    """G80: Readiness says why; nothing was asked over that connection."""
    settings, said = wrong[case]
    async with running_api(settings) as api:
        answer = await api.get("/health/ready")
        part = answer.json["parts"][case.split(maxsplit=1)[0]]
    assert not part["ok"]
    assert said in part["detail"]
    assert answer.status == (503 if "database" in case else 200)


@WRONG
async def test_doctor_names_a_wrong_certificate(
    wrong: dict[str, tuple[Settings, str]], case: str, tmp_path: Path
) -> None:
    """G80: `podium doctor` fails and names the variable, also for the commands of pods."""
    settings, said = wrong[case]
    terminal = Terminal(
        tmp_path,
        {
            "PODIUM_DATABASE_URL": settings.database_url.get_secret_value(),
            "PODIUM_DATABASE_CA_FILE": settings.database_ca_file,
            "PODIUM_AMQP_URL": settings.amqp_url.get_secret_value(),
            "PODIUM_AMQP_CA_FILE": settings.amqp_ca_file,
            "PODIUM_API_URL": "http://127.0.0.1:9",
        },
    )
    ran = await terminal.quick("doctor", "--json")
    (check,) = [each for each in ran.json if said in each["finding"]]
    assert (check["verdict"], "_CA_FILE" in check["advice"]) == ("failed", True)
    if "broker" in case:
        pod = ["--name", "bot", "--acp-url", "http://10.0.0.7:8000"]
        refused = await terminal.quick("register", *pod, "--timeout", "1s")
        assert (refused.code, said in refused.err, "PODIUM_AMQP_CA_FILE" in refused.err) == (3, True, True)


async def test_a_server_without_tls_is_refused(over_tls: Settings) -> None:
    """G80: With an authority, no connection to a database continues without TLS."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as a PostgreSQL without TLS, and read whether anything follows."""
        await reader.readexactly(8)
        writer.write(b"N")
        sent.append(await reader.read(1))
        writer.close()

    sent: list[bytes] = []
    async with await asyncio.start_server(refuse, OTHER_HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = make_url(over_tls.database_url.get_secret_value()).set(host=OTHER_HOST, port=port)
        plain = {"database_url": SecretStr(url.render_as_string(hide_password=False))}
        engine = make_engine(over_tls.model_copy(update=plain), application_name="tests", pool_size=1)
        with pytest.raises(ConnectionError, match="rejected SSL upgrade"):
            async with engine.connect():
                pass
        await close_engine(engine)

        async def ended() -> bool:
            return bool(sent)

        await eventually(ended, "the end of the connection")
    assert sent == [b""]


@pytest.mark.parametrize("parameter", ["?no_verify_ssl=1", "?heartbeat=7&no_verify_ssl=1", "?cafile=/x.pem&capath=/"])
def test_the_url_cannot_switch_the_check_off(over_tls: Settings, parameter: str) -> None:
    """G80: With an authority in the settings, the URL's own parameters of TLS have no effect."""
    url = SecretStr(over_tls.amqp_url.get_secret_value() + parameter)
    query = URL(broker_url(over_tls.model_copy(update={"amqp_url": url}))).query
    assert query.getall("cafile") == [over_tls.amqp_ca_file]
    assert not {"no_verify_ssl", "capath"} & query.keys()
    assert query.get("heartbeat") == ("7" if "heartbeat" in parameter else None)


async def test_register_refuses_what_is_no_tls(over_tls: Settings, tmp_path: Path) -> None:
    """A wrong file, or an address without TLS, is wrong usage and is never tried."""
    terminal = Terminal(tmp_path, {"PODIUM_AMQP_URL": over_tls.amqp_url.get_secret_value()})
    pod = ["register", "--name", "bot", "--acp-url", "http://10.0.0.7:8000"]
    none = await terminal.quick(*pod, PODIUM_AMQP_CA_FILE=str(tmp_path / "none.pem"))
    assert (none.code, "there is no file" in none.error) == (2, True)
    url = "amqp://localhost:9/"
    plain = await terminal.quick(*pod, PODIUM_AMQP_CA_FILE=over_tls.amqp_ca_file, PODIUM_AMQP_URL=url)
    assert (plain.code, "amqps://" in plain.error) == (2, True)


def test_files_that_are_no_authority_are_refused(tmp_path: Path, secured: SecuredServers) -> None:
    """The variable is named: no such file, no certificate in it, or a URL without TLS."""
    empty, broken = tmp_path / "empty.pem", tmp_path / "broken.pem"
    empty.write_text("")
    broken.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    for path in (tmp_path / "none.pem", empty, broken, tmp_path):
        with pytest.raises(ValidationError, match="database_ca_file"):
            Settings(database_ca_file=str(path))
    with pytest.raises(ValidationError, match="amqps://"):
        Settings(amqp_url=SecretStr("amqp://localhost/"), amqp_ca_file=str(secured.ca_file))
