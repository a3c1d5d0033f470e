"""If a server does not start, the error message gives the reason."""

import json
import socket
from pathlib import Path

import pytest

from podium.servers import ServersError, ServersMissing, ServerStartFailed, private_servers


async def test_the_error_shows_the_end_of_the_log(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """And the path of the log. No process is left, and the data directory can be used again."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq):
        pass
    settings = data_dir / "postgres" / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text("shared_buffers = nonsense\n")
    with pytest.raises(ServerStartFailed) as failure:
        async with private_servers(data_dir, environ=without_rabbitmq):
            pytest.fail("should not start")
    assert 'invalid value for parameter "shared_buffers": "nonsense"' in str(failure.value)
    assert str(data_dir / "logs" / "postgres.log") in str(failure.value)
    settings.write_text(good)
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq):
        pass


async def test_a_saved_port_that_is_taken_is_replaced(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The data stay; the new address is saved."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as first:
        pass
    with socket.create_server(("127.0.0.1", _port(data_dir))):
        async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as second:
            assert second.database_url != first.database_url
            assert str(_port(data_dir)) in second.database_url


async def test_data_of_a_version_that_is_not_installed(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The error names the version that created them. Exit code 2: a person has to install it."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq):
        pass
    version = data_dir / "postgres" / "data" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(
        ServersMissing, match=r"PostgreSQL 9, which created the data in .* is not installed on this machine"
    ) as missing:
        async with private_servers(data_dir, environ=without_rabbitmq):
            pytest.fail("should not start")
    assert missing.value.exit_code == 2


async def test_a_file_is_not_a_data_directory(tmp_path: Path) -> None:
    """The error is a sentence, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(ServersError, match="cannot be used as a data directory"):
        async with private_servers(tmp_path / "file"):
            pytest.fail("should not start")


def _port(data_dir: Path) -> int:
    port: int = json.loads((data_dir / "servers.json").read_text())["servers"]["postgres"]["ports"]["postgresql"]
    return port
