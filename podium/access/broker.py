"""The users of RabbitMQ and their permissions: what each program needs, and nothing else.

Patterns are regular expressions of resource names: https://www.rabbitmq.com/docs/access-control
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from contracts.fields import AGENT_NAME_PATTERN
from contracts.topology import (
    EVENTS_EXCHANGE,
    PARKED_QUEUE,
    REGISTRATIONS_EXCHANGE,
    REGISTRATIONS_QUEUE,
    registration_key,
)

NOTHING = "^$"
# The name under which permissions know the default exchange, which leads to every queue by its name.
DEFAULT_EXCHANGE = "amq.default"
# A consumer's queues begin with its name and a dot. These prefixes are those of Podium's and RabbitMQ's own names.
RESERVED = {"podium", "amq"}


class BadName(ValueError):
    """A name that no user can be made of."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a user may do in a virtual host."""

    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING


@dataclass(frozen=True, slots=True)
class User:
    """A user of the broker. `keys` confines what it publishes to `podium.registrations`; None: any routing key."""

    name: str
    purpose: str
    permissions: Permissions
    keys: str | None = None


def policy(agents: Iterable[str] = (), consumers: Iterable[str] = ()) -> list[User]:
    """Podium's own users, one for the pods of each agent, and one for each consumer. Raises `BadName`."""
    return [_migrate(), _worker(), _api(), *map(_agent, agents), *map(_consumer, consumers)]


def _migrate() -> User:
    """Declares everything. A queue with a dead-letter exchange takes read on the queue and write on that exchange."""
    return User(
        "podium-migrate",
        "runs 'podium migrate' and 'podium doctor'",
        Permissions(
            configure=_exactly(REGISTRATIONS_EXCHANGE, PARKED_QUEUE, EVENTS_EXCHANGE),
            write=_exactly(REGISTRATIONS_QUEUE, DEFAULT_EXCHANGE),
            read=_exactly(REGISTRATIONS_EXCHANGE),
        ),
    )


def _worker() -> User:
    """Replies go through the default exchange, so a worker could also publish to a queue directly."""
    return User(
        "podium-worker",
        "runs 'podium worker'",
        Permissions(
            write=_exactly(EVENTS_EXCHANGE, DEFAULT_EXCHANGE), read=_exactly(REGISTRATIONS_QUEUE, PARKED_QUEUE)
        ),
    )


def _api() -> User:
    return User(
        "podium-api",
        "runs 'podium api', which sends parked messages again",
        Permissions(write=_exactly(REGISTRATIONS_EXCHANGE)),
    )


def _agent(name: str) -> User:
    if not re.fullmatch(AGENT_NAME_PATTERN, name):
        raise BadName(f"{name!r} is not the name of an agent.")
    return User(
        f"agent-{name}",
        f"announces the pods of {name}",
        Permissions(write=_exactly(REGISTRATIONS_EXCHANGE)),
        keys=_exactly(registration_key(name)),
    )


def _consumer(name: str) -> User:
    """Binding takes write on the queue and read on the exchange."""
    if not re.fullmatch(AGENT_NAME_PATTERN, name) or name in RESERVED:
        raise BadName(f"{name!r} cannot be the name of a consumer: use lower-case letters, digits and '-'.")
    own = f"{re.escape(name)}[.].+"
    return User(
        f"consumer-{name}",
        f"reads events into queues of its own, named {name}.*",
        Permissions(configure=f"^{own}$", write=f"^{own}$", read=f"^({own}|{_escaped(EVENTS_EXCHANGE)})$"),
    )


def commands(users: Sequence[User], vhost: str) -> list[str]:
    """A shell script of `rabbitmqctl` that makes these users; each new user's password goes to a file of its own."""
    lines = ["umask 077"]
    for user in users:
        rights = user.permissions
        password = f"{user.name}.password"
        add = f"[ -e {password} ] || openssl rand -hex 24 | tee {password} | rabbitmqctl add_user {user.name}"
        lines += [f"# {user.name} {user.purpose}", add]
        # Before the permission, which alone would allow every routing key.
        if user.keys is not None:
            lines.append(
                f"rabbitmqctl set_topic_permissions -p '{vhost}' {user.name} {REGISTRATIONS_EXCHANGE} "
                f"'{user.keys}' '{NOTHING}'"
            )
        lines.append(
            f"rabbitmqctl set_permissions -p '{vhost}' {user.name} "
            f"'{rights.configure}' '{rights.write}' '{rights.read}'"
        )
    return lines


def _exactly(*names: str) -> str:
    """A pattern of these names alone."""
    escaped = [_escaped(name) for name in dict.fromkeys(names)]
    return f"^{escaped[0]}$" if len(escaped) == 1 else f"^({'|'.join(escaped)})$"


def _escaped(name: str) -> str:
    # Without backslashes, which shells and JSON would have to escape once more.
    return name.replace(".", "[.]")
