"""The settings: one frozen object, read once when a process starts and passed down."""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contracts import topology
from contracts.fields import check_service_address, is_loopback
from services.tls import check_ca_file


def _plain_seconds(value: object) -> object:
    """A plain number as seconds: `PODIUM_DRAIN_TIMEOUT=30`."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


def _listed(value: object) -> object:
    """The parts of a comma-separated list."""
    return [part for each in value.split(",") if (part := each.strip())] if isinstance(value, str) else value


def _ca_file_or_none(value: str) -> str:
    return check_ca_file(value) if value else value


def _only_with_tls(value: str, info: ValidationInfo) -> str:
    url = info.data.get("amqp_url", SecretStr("")).get_secret_value()
    if value and url and urlsplit(url).scheme != "amqps":
        raise PydanticCustomError("no_tls", "PODIUM_AMQP_URL must begin with amqps:// for TLS")
    return value


def _address_or_none(value: str) -> str:
    return check_service_address(value) if value else value


Duration = Annotated[timedelta, BeforeValidator(_plain_seconds), Field(ge=timedelta(0))]


def _at_most(longest: timedelta, why: str = "") -> AfterValidator:
    """Accept durations from a millisecond to `longest`."""

    def check(value: timedelta) -> timedelta:
        if not SHORTEST_TIMEOUT <= value <= longest:
            limits = f"from {SHORTEST_TIMEOUT.total_seconds():g} to {longest.total_seconds():.0f} seconds"
            raise PydanticCustomError("timeout", "it must be {limits}{why}", {"limits": limits, "why": why})
        return value

    return AfterValidator(check)


# PostgreSQL's unit, in which 0 would mean that there is no limit; and about the longest that it accepts.
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = timedelta(milliseconds=1), timedelta(days=24)
Timeout = Annotated[timedelta, BeforeValidator(_plain_seconds), _at_most(LONGEST_TIMEOUT)]
# PostgreSQL ends the relay's session, and with it the relay's lock, after 5 idle seconds.
RelayPoll = Annotated[
    timedelta,
    BeforeValidator(_plain_seconds),
    _at_most(timedelta(seconds=4), ": the database ends a relay's session that is idle for 5 seconds"),
]


CaFile = Annotated[str, AfterValidator(_ca_file_or_none)]

# Comma-separated lists.
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode, BeforeValidator(_listed)]


PREFIX = "PODIUM_"
# Earlier names of settings, which still work, and the field that each sets.
EARLIER_NAMES = {
    f"{PREFIX}READY_WITH_PROOF": "ready_requires_probe",
    f"{PREFIX}SESSION_RETENTION": "conversation_idle",
}


def variable_of(field: str) -> str:
    """The environment variable of a setting, from its field or from its name in a validation error."""
    name = field.upper()
    return name if name.startswith(PREFIX) else f"{PREFIX}{name}"


class Settings(BaseSettings):
    """All `PODIUM_*` variables. Durations are seconds or ISO 8601."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", populate_by_name=True)

    database_url: SecretStr = Field(
        default=SecretStr(""), description="postgresql://user:password@host:port/database (14 or later)"
    )
    amqp_url: SecretStr = Field(default=SecretStr(""), description="amqp://user:password@host:port/vhost (3.10+)")
    database_ca_file: CaFile = Field(
        default="",
        description="PEM file of the authority of PostgreSQL's certificate, which must be of the URL's host; with it, "
        "connections always use TLS.",
    )
    amqp_ca_file: Annotated[CaFile, AfterValidator(_only_with_tls)] = Field(
        default="", description="The same for RabbitMQ's certificate; needs an amqps:// URL."
    )
    secret_key: SecretStr = Field(
        default=SecretStr(""),
        description="Secret from which the agents' keys are derived; the same for all API processes and registrars.",
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        description="An API key that may do everything. If it is set, every request must send a key.",
    )
    require_keys: bool = Field(
        default=False,
        description="Every request must send a key, also without PODIUM_API_KEY: one of 'podium keys'. "
        "This or PODIUM_API_KEY is required unless the API listens on loopback only.",
    )
    oidc_file: str = Field(
        default="",
        description="TOML file of OpenID Connect issuers and grants; if it is set, every request must send a key or a "
        "token.",
    )
    auth_failures_per_minute: int = Field(
        default=60,
        ge=1,
        description="Requests without a valid key per minute, address and API process; further ones get 429.",
    )

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port the API listens on.")

    worker_host: str = Field(
        default="127.0.0.1", description="Address on which a worker answers health checks and metrics."
    )
    worker_port: int = Field(
        default=0, ge=0, le=65535, description="Port on which a worker answers health checks and metrics; 0: none."
    )

    public_url: Annotated[str, AfterValidator(_address_or_none)] = Field(
        default="", description="URL of the API for callers, used in agent cards; if empty, the URL of the request."
    )

    database_pool_size: int = Field(default=10, ge=1, description="Connections per process.")
    changes_per_agent: int = Field(
        default=2, ge=1, description="Changes of one agent that use a connection at a time; further ones wait."
    )
    database_timeout: Timeout = Field(
        default=timedelta(seconds=6), description="Longest time that a request waits for the database."
    )
    lock_timeout: Timeout = Field(
        default=timedelta(seconds=5),
        description="Longest wait for the lock of an agent's row; a registrar waits 0.1 s and then defers the agent.",
    )
    statement_timeout: Timeout = Field(default=timedelta(seconds=30), description="Longest time of one SQL statement.")

    registrations_max_length: int = Field(
        default=topology.REGISTRATIONS_MAX_LENGTH,
        ge=1,
        description="Largest number of messages in the registration queue.",
    )
    delivery_limit: int = Field(
        default=topology.DELIVERY_LIMIT,
        ge=1,
        description="Deliveries of a message before RabbitMQ makes it a dead letter.",
    )

    require_signed_announcements: bool = Field(
        default=False,
        description="Workers park a message from the queue that has no valid signature of its agent; they need "
        "PODIUM_SECRET_KEY.",
    )

    batch_size: int = Field(
        default=200,
        ge=1,
        le=5000,
        description="Largest number of registrations per transaction, of at most 1 MiB together.",
    )
    batch_linger: Duration = Field(
        default=timedelta(0), description="How long a batch waits for more messages after the first."
    )
    relay_batch_size: int = Field(
        default=500, ge=1, le=10_000, description="Events that the relay reads from the outbox at a time."
    )
    relay_poll: RelayPoll = Field(
        default=timedelta(milliseconds=250),
        description="How often an idle relay reads the outbox; notifications wake it sooner.",
    )
    publish_timeout: Timeout = Field(default=timedelta(seconds=10), description="Longest wait for a publisher confirm.")
    drain_timeout: Duration = Field(default=timedelta(seconds=10), description="Longest time of a graceful stop.")

    instances_per_deployment: int = Field(
        default=100, ge=1, le=1000, description="Most instances of a deployment; further ones are refused."
    )
    instance_retention: Timeout = Field(
        default=timedelta(minutes=10),
        description="How long an instance may be Failed before it is removed; the last one of a deployment stays.",
    )
    probe_interval: Duration = Field(
        default=timedelta(seconds=30), gt=timedelta(0), description="How often a deployment is probed."
    )
    probe_threshold: int = Field(
        default=3, ge=1, description="Equal probe results in a row that make a deployment Failed, or Ready again."
    )
    probe_timeout: Timeout = Field(
        default=timedelta(seconds=5), description="Time limit of a probe; at most the interval."
    )
    probe_concurrency: int = Field(default=100, ge=1, description="Concurrent probes per janitor.")
    panic_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="A janitor whose probes fail for more than this share of Ready deployments sets none Failed; "
        "1: no limit.",
    )
    panic_agents: int = Field(
        default=5, ge=1, description="Of how many agents, at as many addresses, those deployments must be at least."
    )
    panic_window: Timeout = Field(
        default=timedelta(seconds=60),
        description="How long a probe counts for that share; at least the probe interval.",
    )
    pending_deadline: Timeout = Field(
        default=timedelta(minutes=15), description="How long a deployment may be Pending before it is Failed."
    )
    ready_requires_probe: bool = Field(
        default=False,
        validation_alias=AliasChoices(f"{PREFIX}READY_REQUIRES_PROBE", *EARLIER_NAMES),
        description="A registration makes a deployment Ready only after the deployment has answered a probe.",
    )
    janitor_poll: Timeout = Field(
        default=timedelta(milliseconds=250),
        description="How often a janitor looks for due probes and passed deadlines.",
    )

    preview_max_age: Duration = Field(
        default=timedelta(0),
        description="Previews that have not registered for longer than this are deleted; 0: never.",
    )
    deleted_retention: Duration = Field(
        default=timedelta(days=30), description="How long deleted deployments are kept; after that a tombstone stays."
    )
    production_versions_kept: int = Field(
        default=20, ge=0, description="The last versions in production of each agent, which retention does not remove."
    )
    outbox_retention: Duration = Field(
        default=timedelta(days=7), description="How long published events can be read over HTTP."
    )
    inbox_retention: Duration = Field(
        default=timedelta(days=7), description="How long the outcome of an announcement is kept."
    )
    parked_retention: Duration = Field(
        default=timedelta(days=30), description="How long parked messages are kept unless an operator drops them."
    )
    conversation_idle: Duration = Field(
        default=timedelta(days=7),
        gt=timedelta(0),
        validation_alias=AliasChoices(f"{PREFIX}CONVERSATION_IDLE", f"{PREFIX}SESSION_RETENTION"),
        description="How long a conversation stays open after its last call.",
    )
    conversation_max_age: Duration = Field(
        default=timedelta(days=30),
        gt=timedelta(0),
        description="How long a conversation stays open after its first call.",
    )
    drain_deadline: Duration = Field(
        default=timedelta(days=7),
        gt=timedelta(0),
        description="How long conversations stay with a deployment that has stopped serving.",
    )
    call_counts_retention: Duration = Field(
        default=timedelta(hours=2),
        ge=timedelta(hours=1),
        description="How long the counts of calls per agent, version and minute are kept.",
    )
    sweep_interval: Duration = Field(
        default=timedelta(seconds=60),
        ge=timedelta(milliseconds=100),
        description="How often a janitor looks for data past its retention.",
    )
    sweep_batch_size: int = Field(
        default=500, ge=1, le=5000, description="Largest number of rows removed per transaction."
    )

    route_timeout: Timeout = Field(
        default=timedelta(seconds=3), description="Time limit of a route read; a call waits for two at most."
    )
    connect_timeout: Timeout = Field(
        default=timedelta(seconds=3), description="Time limit for connecting to an agent's pod."
    )
    first_byte_timeout: Timeout = Field(
        default=timedelta(seconds=300), description="Longest wait for the first byte of an agent's response."
    )
    idle_timeout: Timeout = Field(
        default=timedelta(seconds=300), description="Longest wait between chunks of an agent's response."
    )
    card_timeout: Timeout = Field(default=timedelta(seconds=10), description="Time limit for fetching an agent's card.")
    sse_heartbeat: Timeout = Field(
        default=timedelta(seconds=15), description="Interval of heartbeats on an idle event stream."
    )
    head_timeout: Timeout = Field(
        default=timedelta(seconds=10), description="Time limit for receiving the head of a request."
    )
    body_idle_timeout: Timeout = Field(
        default=timedelta(seconds=20), description="Longest pause before and in a request body."
    )
    body_timeout: Timeout = Field(default=timedelta(seconds=60), description="Time limit for receiving a request body.")
    write_timeout: Timeout = Field(
        default=timedelta(seconds=60), description="Longest time in which a caller does not read its answer."
    )
    keep_alive_timeout: Timeout = Field(
        default=timedelta(seconds=75),
        description="How long a caller's idle connection stays open. Load balancers must close theirs earlier.",
    )
    calls_per_deployment: int = Field(
        default=2000,
        ge=1,
        description="Concurrent RPC calls per API process and deployment, or instance where pods name theirs.",
    )
    instance_warm_up: Duration = Field(
        default=timedelta(seconds=10),
        description="A named instance that became Ready more recently gets fewer calls than its siblings.",
    )
    breaker_failures: int = Field(
        default=5,
        ge=1,
        description="Calls in a row without a connection or a response that open the circuit breaker of a deployment, "
        "or instance.",
    )
    breaker_pause: Duration = Field(
        default=timedelta(seconds=5), description="How long an open circuit breaker waits before it lets one call try."
    )
    rpc_max_bytes: int = Field(default=4 * 1024 * 1024, ge=1, description="Largest RPC request body.")
    request_buffer_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1,
        description="RPC request bodies in memory, per API process; at least twice PODIUM_RPC_MAX_BYTES.",
    )
    dial_networks: Networks = Field(
        default=(),
        description="Networks that agents may be in, as 10.0.0.0/8,fd00::/8; "
        "if empty, private ones, and loopback if the API listens on loopback only.",
    )
    dial_hosts: Names = Field(
        default=(),
        description="Allowed suffixes of the host in an agent's address, as .internal,.example.com; if empty, any.",
    )
    dial_ports: Ports = Field(default=(), description="Allowed ports of agents, as 80,443,8000; if empty, any.")

    metrics_agents: int = Field(
        default=200,
        ge=0,
        le=10_000,
        description="Agents with metrics of their own, per process; all others share the label `_other`. 0: no metrics "
        "of agents.",
    )
    traces: Literal["off", "otlp"] = Field(
        default="off",
        description="otlp: send traces with OTLP over HTTP, to where OTEL_* variables say; needs podium[otel].",
    )
    webhook_concurrency: int = Field(
        default=60,
        ge=2,
        le=1000,
        description="Webhook deliveries under way per process; receivers that are slow or fail get at most half.",
    )
    webhook_receiver_concurrency: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Deliveries under way per webhook and process; half, and one retry, while it is slow or fails.",
    )
    webhook_timeout: Timeout = Field(
        default=timedelta(seconds=15),
        description="Time limit of one delivery, from the lookup of the name to the head of the answer.",
    )
    webhook_first_retry: Timeout = Field(
        default=timedelta(seconds=5), description="Longest wait after a first failed delivery; it doubles each time."
    )
    webhook_longest_retry: Timeout = Field(
        default=timedelta(hours=1), description="Longest wait between deliveries of an event, also for `retry-after`."
    )
    webhook_disable_after: Timeout = Field(
        default=timedelta(days=3), description="A webhook that has accepted nothing for this time is disabled."
    )
    webhook_poll: Timeout = Field(
        default=timedelta(seconds=1),
        description="How often webhooks look for events and retries that are due; notifications wake them sooner.",
    )
    webhook_dial_networks: Networks = Field(
        default=(),
        description="Networks that receivers of webhooks may be in; /0 stands for public addresses, as does no entry.",
    )
    webhook_dial_hosts: Names = Field(
        default=(), description="Allowed suffixes of the host in a webhook's URL; if empty, any."
    )
    webhook_dial_ports: Ports = Field(default=(), description="Allowed ports of receivers of webhooks; if empty, any.")

    log_format: Literal["console", "json"] = Field(
        default="console", description="console: for people; json: one JSON object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )

    @property
    def keys_required(self) -> bool:
        """Whether requests must send a key."""
        return self.require_keys or bool(self.oidc_file) or bool(self.api_key.get_secret_value())

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        return is_loopback(self.host)
