"""PostgreSQL and RabbitMQ as containers, for machines with Docker and without the servers' programs."""

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

POSTGRES_IMAGE = "postgres:17-alpine"
RABBITMQ_IMAGE = "rabbitmq:4.1-alpine"
AMQP_PORT = 5672


def rabbitmq_container(user: str, password: str) -> DockerContainer:
    """A broker with a user that may connect from outside the container; `guest` may not."""
    return (
        DockerContainer(RABBITMQ_IMAGE)
        .with_exposed_ports(AMQP_PORT)
        .with_env("RABBITMQ_DEFAULT_USER", user)
        .with_env("RABBITMQ_DEFAULT_PASS", password)
        .waiting_for(LogMessageWaitStrategy("Server startup complete"))
    )


@contextmanager
def both_containers() -> Iterator[tuple[str, str]]:
    """The URLs of the database and the broker, which run while inside."""
    user, password = "podium", token_hex(16)
    postgres = PostgresContainer(POSTGRES_IMAGE, username=user, password=password, dbname="podium", driver=None)
    with postgres, rabbitmq_container(user, password) as rabbitmq:
        host, port = rabbitmq.get_container_host_ip(), rabbitmq.get_exposed_port(AMQP_PORT)
        yield postgres.get_connection_url(), f"amqp://{user}:{password}@{host}:{port}/"
