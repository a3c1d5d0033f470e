"""The settings: one frozen object, read once where a process starts and handed down."""

from datetime import timedelta
from ipaddress import ip_address

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts import topology


class Settings(BaseSettings):
    """Every `PODIUM_*` variable; durations are seconds or ISO 8601."""

    model_config = SettingsConfigDict(env_prefix="PODIUM_", frozen=True, extra="ignore")

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

    database_pool_size: int = Field(default=10, ge=1, description="Connections per process.")
    lock_timeout: timedelta = Field(default=timedelta(seconds=5), description="Longest wait for an agent's row.")
    statement_timeout: timedelta = Field(default=timedelta(seconds=30), description="Longest single statement.")

    registrations_max_length: int = Field(default=topology.REGISTRATIONS_MAX_LENGTH, ge=1)
    delivery_limit: int = Field(default=topology.DELIVERY_LIMIT, ge=1)

    batch_size: int = Field(default=200, ge=1, le=5000, description="Registrations per transaction, at most.")
    batch_linger: timedelta = Field(
        default=timedelta(milliseconds=2), description="How long a batch waits for company once it has a message."
    )
    relay_batch_size: int = Field(default=500, ge=1, le=10_000, description="Events read from the outbox at a time.")
    relay_poll: timedelta = Field(
        default=timedelta(milliseconds=250), description="How often an idle relay looks; notifications wake it sooner."
    )
    publish_timeout: timedelta = Field(default=timedelta(seconds=10), description="Longest wait for a confirm.")
    drain_timeout: timedelta = Field(default=timedelta(seconds=10), description="Longest orderly stop.")

    connect_timeout: timedelta = Field(default=timedelta(seconds=3), description="Reaching an agent's pod.")
    first_byte_timeout: timedelta = Field(default=timedelta(seconds=300), description="Until an agent answers.")
    idle_timeout: timedelta = Field(default=timedelta(seconds=300), description="Between chunks of an agent's answer.")
    rpc_max_bytes: int = Field(default=4 * 1024 * 1024, ge=1, description="Largest RPC request body.")

    log_format: str = Field(default="console", pattern="^(console|json)$")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
