"""The settings: one frozen object, read once where a process starts and handed down."""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contracts import topology
from contracts.fields import check_service_address


def _plain_seconds(value: object) -> object:
    """What is only a number is seconds: `PODIUM_DRAIN_TIMEOUT=30`."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


def _listed(value: object) -> object:
    """`a, b` as its parts."""
    return [part for each in value.split(",") if (part := each.strip())] if isinstance(value, str) else value


def _address_or_none(value: str) -> str:
    return check_service_address(value) if value else value


Duration = Annotated[timedelta, BeforeValidator(_plain_seconds), Field(ge=timedelta(0))]


# Several, written with commas between them.
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode, BeforeValidator(_listed)]


PREFIX = "PODIUM_"
# The earlier name of a setting, which keeps working, and the field that it sets.
EARLIER_NAMES = {f"{PREFIX}READY_WITH_PROOF": "ready_requires_probe"}


def variable_of(field: str) -> str:
    """The environment variable of a setting, named by its field or by what a validation error calls it."""
    name = field.upper()
    return name if name.startswith(PREFIX) else f"{PREFIX}{name}"


class Settings(BaseSettings):
    """Every `PODIUM_*` variable; durations are seconds or ISO 8601."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", populate_by_name=True)

    database_url: SecretStr = Field(
        default=SecretStr(""), description="postgresql://user:password@host:port/database (14 or later)"
    )
    amqp_url: SecretStr = Field(default=SecretStr(""), description="amqp://user:password@host:port/vhost (3.10+)")
    secret_key: SecretStr = Field(
        default=SecretStr(""), description="Agents' own API keys are derived from it; the same on every API process."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), description="Key that every request must carry; needed on any bind but loopback."
    )

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port the API listens on.")

    public_url: Annotated[str, AfterValidator(_address_or_none)] = Field(
        default="", description="Where callers reach the API, for agent cards; where not set, as each request came in."
    )

    database_pool_size: int = Field(default=10, ge=1, description="Connections per process.")
    database_timeout: Duration = Field(
        default=timedelta(seconds=6), description="Longest that a request waits for the database."
    )
    lock_timeout: Duration = Field(default=timedelta(seconds=5), description="Longest wait for an agent's row.")
    statement_timeout: Duration = Field(default=timedelta(seconds=30), description="Longest single statement.")

    registrations_max_length: int = Field(
        default=topology.REGISTRATIONS_MAX_LENGTH, ge=1, description="Messages that wait for workers, at most."
    )
    delivery_limit: int = Field(
        default=topology.DELIVERY_LIMIT, ge=1, description="Deliveries of a message before the broker gives up on it."
    )

    batch_size: int = Field(default=200, ge=1, le=5000, description="Registrations per transaction, at most.")
    batch_linger: Duration = Field(
        default=timedelta(0), description="How long a batch waits for company once it has a message."
    )
    relay_batch_size: int = Field(default=500, ge=1, le=10_000, description="Events read from the outbox at a time.")
    relay_poll: Duration = Field(
        default=timedelta(milliseconds=250), description="How often an idle relay looks; notifications wake it sooner."
    )
    publish_timeout: Duration = Field(default=timedelta(seconds=10), description="Longest wait for a confirm.")
    drain_timeout: Duration = Field(default=timedelta(seconds=10), description="Longest orderly stop.")

    probe_interval: Duration = Field(
        default=timedelta(seconds=30), gt=timedelta(0), description="How often a deployment's health page is asked."
    )
    probe_threshold: int = Field(
        default=3, ge=1, description="Probes in a row that must agree before a deployment is Failed, or Ready again."
    )
    probe_timeout: Duration = Field(
        default=timedelta(seconds=5), gt=timedelta(0), description="Longest probe; never longer than the interval."
    )
    probe_concurrency: int = Field(default=100, ge=1, description="Probes at a time, per janitor.")
    pending_deadline: Duration = Field(
        default=timedelta(minutes=15), description="How long a deployment may be Pending before it is Failed."
    )
    ready_requires_probe: bool = Field(
        default=False,
        validation_alias=AliasChoices(f"{PREFIX}READY_REQUIRES_PROBE", *EARLIER_NAMES),
        description="A registration makes a deployment Ready only after the deployment has answered a probe.",
    )
    janitor_poll: Duration = Field(
        default=timedelta(milliseconds=250), description="How often a janitor looks for what is due."
    )

    preview_max_age: Duration = Field(
        default=timedelta(0), description="Previews not announced for longer than this are deleted; 0: never."
    )
    deleted_retention: Duration = Field(
        default=timedelta(days=30), description="How long deleted deployments are kept whole; a tombstone stays."
    )
    production_versions_kept: int = Field(
        default=20, ge=0, description="Versions of a living agent, the last in production, that no age removes."
    )
    outbox_retention: Duration = Field(
        default=timedelta(days=7), description="How long published events can be read over HTTP."
    )
    inbox_retention: Duration = Field(
        default=timedelta(days=7), description="How long it is told what became of an announcement."
    )
    parked_retention: Duration = Field(
        default=timedelta(days=30), description="How long messages stay parked that nobody drops."
    )
    session_retention: Duration = Field(
        default=timedelta(days=7),
        gt=timedelta(hours=1),
        description="How long after its last call an MCP session stays with its deployment; more than an hour.",
    )
    sweep_interval: Duration = Field(
        default=timedelta(seconds=60),
        ge=timedelta(milliseconds=100),
        description="How often what is past its retention is looked for.",
    )
    sweep_batch_size: int = Field(default=500, ge=1, le=5000, description="Rows that are removed at a time, at most.")

    route_timeout: Duration = Field(
        default=timedelta(seconds=3), description="Reading what serves; a call waits for two such reads at most."
    )
    connect_timeout: Duration = Field(default=timedelta(seconds=3), description="Reaching an agent's pod.")
    first_byte_timeout: Duration = Field(default=timedelta(seconds=300), description="Until an agent answers.")
    idle_timeout: Duration = Field(default=timedelta(seconds=300), description="Between chunks of an agent's answer.")
    card_timeout: Duration = Field(default=timedelta(seconds=10), description="Fetching an agent's card, in all.")
    sse_heartbeat: Duration = Field(default=timedelta(seconds=15), description="Sign of life on a silent event stream.")
    body_timeout: Duration = Field(default=timedelta(seconds=60), description="Until a caller has sent its request.")
    calls_per_deployment: int = Field(
        default=2000, ge=1, description="RPC calls of one deployment under way at a time, per API process."
    )
    breaker_failures: int = Field(
        default=5,
        ge=1,
        description="Failed calls in a row, for want of a connection or an answer, until an agent is left alone.",
    )
    breaker_pause: Duration = Field(
        default=timedelta(seconds=5), description="How long an agent is left alone before one call tries it again."
    )
    rpc_max_bytes: int = Field(default=4 * 1024 * 1024, ge=1, description="Largest RPC request body.")
    dial_networks: Networks = Field(
        default=(),
        description="Networks that agents may live in, as 10.0.0.0/8,fd00::/8; "
        "if empty, private ones, and loopback where the API listens on loopback.",
    )
    dial_hosts: Names = Field(
        default=(),
        description="What the host of an agent's address must end in, as .internal,.example.com; if empty, any.",
    )
    dial_ports: Ports = Field(default=(), description="Ports of agents, as 80,443,8000; if empty, any.")

    log_format: Literal["console", "json"] = Field(default="console", description="For people, or a JSON line each.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least to log.")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
