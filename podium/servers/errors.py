"""Errors of the servers. Each message is a sentence that tells a person at a terminal what to do."""


class ServersError(Exception):
    """The servers that Podium needs are not usable."""

    exit_code = 1


class ServersMissing(ServersError):
    """PostgreSQL or RabbitMQ is not installed, and a person has to install it."""

    exit_code = 2


class InstallFailed(ServersError):
    """The package manager did not install what Podium needs."""


class AlreadyRunning(ServersError):
    """Another Podium uses this data directory."""


class ServerStartFailed(ServersError):
    """A private server did not start."""


class ServerDied(ServersError):
    """A private server ended unexpectedly."""
