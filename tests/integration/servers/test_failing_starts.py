"""When a server does not come up, the message is enough to find out why."""

import json
import socket
from pathlib import Path

import pytest

from podium.servers import ServersError, ServersMissing, ServerStartFailed, private_servers


async def test_the_error_shows_the_end_of_the_log(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """And names the file; what was started is gone, and the folder is free again."""
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


async def test_a_remembered_port_that_somebody_took_is_replaced(
    data_dir: Path, without_rabbitmq: dict[str, str]
) -> None:
    """The data are the same, at a new address that is remembered from then on."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as first:
        pass
    with socket.create_server(("127.0.0.1", _port(data_dir))):
        async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as second:
            assert second.database_url != first.database_url
            assert str(_port(data_dir)) in second.database_url


async def test_data_of_a_version_that_is_not_there(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The message says which version made them; exit code 2, since the owner has to act."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq):
        pass
    version = data_dir / "postgres" / "data" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(
        ServersMissing, match=r"PostgreSQL 9, which made the data in .* is not on this machine"
    ) as missing:
        async with private_servers(data_dir, environ=without_rabbitmq):
            pytest.fail("should not start")
    assert missing.value.exit_code == 2


async def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    """A file in the way is a sentence, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(ServersError, match="cannot be used as a data directory"):
        async with private_servers(tmp_path / "file"):
            pytest.fail("should not start")


def _port(data_dir: Path) -> int:
    port: int = json.loads((data_dir / "servers.json").read_text())["servers"]["postgres"]["ports"]["postgresql"]
    return port
