"""What can go wrong with the servers; each message is a sentence that a person at a terminal can act upon."""


class ServersError(Exception):
    """The servers that Podium needs are not usable."""

    exit_code = 1


class ServersMissing(ServersError):
    """PostgreSQL or RabbitMQ is not on this machine, and installing it is for its owner to decide."""

    exit_code = 2


class InstallFailed(ServersError):
    """The package manager did not install what Podium needs."""


class AlreadyRunning(ServersError):
    """Another Podium holds this data directory."""


class ServerStartFailed(ServersError):
    """A private server did not come up."""


class ServerDied(ServersError):
    """A private server ended while it was needed."""
