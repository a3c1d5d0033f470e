"""TLS to PostgreSQL and RabbitMQ: the certificate must be of the address's host, and signed by the authority of a file.

Without such a file, the URLs alone say whether and how connections are encrypted.
"""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

if TYPE_CHECKING:
    from services.settings import Settings

# With this parameter of the URL, the AMQP client trusts that file alone. The others would trust more.
_CA_PARAMETER = "cafile"
_TRUST_PARAMETERS = {_CA_PARAMETER, "capath", "cadata", "no_verify_ssl"}


def check_ca_file(path: str) -> str:
    """The path of a file with certificates of authorities. Raises `ValueError` that says why it cannot be used."""
    try:
        authorities = ssl.create_default_context(cafile=path).get_ca_certs()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as PEM: {error}") from None
    if not authorities:
        raise ValueError(f"{path} has no certificate of an authority")
    return str(Path(path).absolute())


def database_options(settings: "Settings") -> dict[str, Any]:
    """The options of asyncpg for TLS, with which it never continues without; empty without a file in the settings."""
    return {"ssl": ssl.create_default_context(cafile=settings.database_ca_file)} if settings.database_ca_file else {}


def broker_options(settings: "Settings") -> dict[str, Any]:
    """The options of `asyncio.open_connection` for TLS to the broker. Empty without a file in the settings."""
    return {"ssl": ssl.create_default_context(cafile=settings.amqp_ca_file)} if settings.amqp_ca_file else {}


def broker_url(settings: "Settings") -> str:
    """The URL of the broker for the AMQP client, with the file of the settings. It contains the password."""
    return trusting(settings.amqp_url.get_secret_value(), settings.amqp_ca_file)


def trusting(amqp_url: str, ca_file: str) -> str:
    """The URL with which the AMQP client trusts only this authority; the URL itself if the file is empty."""
    if not ca_file:
        return amqp_url
    parts = urlsplit(amqp_url)
    query = [
        (name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in _TRUST_PARAMETERS
    ]
    return parts._replace(query=urlencode([*query, (_CA_PARAMETER, ca_file)])).geturl()


def certificate_problem(error: BaseException) -> str | None:
    """Why the server's certificate is refused, if that has caused the error: the end of a sentence about a server."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None
