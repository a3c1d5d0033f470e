"""Validated types for names, ids, addresses and other fields, shared by messages and the HTTP API."""

import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

AGENT_NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DEPLOYMENT_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
# Printable ASCII without spaces; a path appended after '?' or '#' would become part of the query or fragment.
PATH_PATTERN = r'^[!-"$->@-~]{1,512}$'
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT_PATTERN = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
ADDRESS_MAX_LENGTH = 2048
HOST_MAX_LENGTH = 253  # of a DNS name
IMAGE_MAX_LENGTH = 1024
# Of stored JSON: far above what metadata needs, far below what a parser or PostgreSQL cannot handle.
MAX_LEVELS = 32

DEFAULT_RPC_PATH = "/api"
DEFAULT_HEALTH_PATH = "/healthz"

_PRINTABLE = re.compile(r"[!-~]+")
_HOST_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# Host and port only. Forms that URL parsers split in different ways are refused, since another parser dials them.
_AUTHORITY = re.compile(rf"(?P<host>\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|{_HOST_LABEL}(\.{_HOST_LABEL})*\.?)(:[0-9]*)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


# Pods announce the same address repeatedly.
@lru_cache(maxsize=10_000)
def check_service_address(address: str) -> str:
    """Return the address unchanged. It must be http or https with a host, without userinfo, query or fragment.

    Raises `ValueError`. Not pydantic's URL type, which would add a slash to an address without a path.
    """
    if not _PRINTABLE.fullmatch(address):
        raise ValueError("must be printable ASCII without blanks, such as http://10.0.0.7:8000")
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must start with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user or password")
    if "?" in address or "#" in address:
        raise ValueError("must not carry a query or fragment")
    if not parts.hostname:
        raise ValueError("must name a host")
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if authority is None or len(authority["host"]) > HOST_MAX_LENGTH:
        raise ValueError("must name a host as DNS or as an IP address, IPv6 in brackets")
    if authority["ipv6"] is not None:
        IPv6Address(authority["ipv6"])  # raises ValueError with the reason
    if parts.port == 0:  # .port raises ValueError above 65535
        raise ValueError("must not name port 0")
    return address


def check_receiver_url(url: str) -> str:
    """Return the URL of a webhook's receiver unchanged: like an address of a service, but it may have a query.

    Raises `ValueError`.
    """
    if not _PRINTABLE.fullmatch(url):
        raise ValueError("must be printable ASCII without blanks, such as https://example.com/hooks/podium")
    if "#" in url:
        raise ValueError("must not carry a fragment")
    check_service_address(url.partition("?")[0])
    return url


def is_loopback(host: str) -> bool:
    """Whether this host, a name or an address, is this machine. No name but `localhost` is looked at."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def joined(address: str, path: str) -> str:
    """Address and path, joined by exactly one slash."""
    return f"{address.rstrip('/')}/{path.lstrip('/')}"


def check_storable(value: object, levels: int = MAX_LEVELS) -> object:
    """Return the value if it can be stored as JSON; raises `ValueError` for NUL, lone surrogates, inf, NaN.

    Also if arrays and objects are nested deeper than `levels`.
    """
    if isinstance(value, dict | list) and levels == 0:
        raise ValueError(f"must not be nested deeper than {MAX_LEVELS} levels")
    if isinstance(value, str):
        if "\x00" in value or _SURROGATE.search(value):
            raise ValueError("must not contain NUL characters or lone surrogates")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must not contain numbers beyond the range of a double")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_storable(key)
            check_storable(item, levels - 1)
    elif isinstance(value, list):
        for item in value:
            check_storable(item, levels - 1)
    return value


def _storable_text(value: str) -> str:
    check_storable(value)
    return value


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("must lie between the years 1 and 9999 in UTC") from exc


AgentName = Annotated[str, StringConstraints(pattern=AGENT_NAME_PATTERN)]
DeploymentId = Annotated[str, StringConstraints(pattern=DEPLOYMENT_ID_PATTERN)]
InstanceId = Annotated[str, StringConstraints(pattern=DEPLOYMENT_ID_PATTERN)]
ServiceAddress = Annotated[
    str, StringConstraints(min_length=1, max_length=ADDRESS_MAX_LENGTH), AfterValidator(check_service_address)
]
ReceiverUrl = Annotated[
    str, StringConstraints(min_length=1, max_length=ADDRESS_MAX_LENGTH), AfterValidator(check_receiver_url)
]
UrlPath = Annotated[str, StringConstraints(pattern=PATH_PATTERN)]
Image = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=IMAGE_MAX_LENGTH)]
Text = Annotated[str, AfterValidator(_storable_text), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]

AcpType = Literal["sync", "async", "agentic"]
InputType = Literal["text", "json"]
ErrorStyle = Literal["http", "jsonrpc"]
Cause = Literal["first", "always", "manual", "rollback", "legacy", "agent_deleted"]
