"""`podium migrate`: creates or updates the database schema, the exchanges and the queues."""

from collections.abc import Callable
from datetime import timedelta

from aio_pika.exceptions import AMQPError, ChannelPreconditionFailed
from sqlalchemy.exc import SQLAlchemyError

from podium.servers import ServersError
from services.events.epochs import adopt_cluster
from services.settings import Settings
from services.storage.database import make_engine
from services.storage.migrate import MigrationBlocked, migrate
from services.tls import certificate_problem
from workers.amqp.topology import declare


async def migrate_all(settings: Settings, say: Callable[[str], None]) -> None:
    """Migrate the schema and declare the exchanges and queues of this version. Repeating it changes nothing.

    Raises:
        ServersError: PostgreSQL or RabbitMQ refused, or is not reachable.
    """
    engine = make_engine(settings, application_name="podium-migrate", pool_size=1, statement_timeout=timedelta(0))
    try:
        before, after = await migrate(engine, report=say)
        async with engine.begin() as connection:
            restored = await adopt_cluster(connection)
    except MigrationBlocked as error:
        raise ServersError(f"{error} Nothing is half done: run 'podium migrate' again.") from error
    except (SQLAlchemyError, OSError) as error:
        raise ServersError(f"The database could not be migrated: {_first_line(error)}") from error
    finally:
        await engine.dispose()
    say(
        f"Schema is at revision {after}."
        if before == after
        else f"Schema migrated from {before or 'nothing'} to {after}."
    )
    if restored:
        say("The data come from another database cluster: cursors of /events issued there get 410 from now on.")
    try:
        await declare(settings)
    except ChannelPreconditionFailed as error:
        raise ServersError(
            f"A queue exists with other arguments. When it is empty, delete it and migrate again. {_first_line(error)}"
        ) from error
    except (AMQPError, OSError) as error:
        raise ServersError(f"The exchanges and queues could not be declared: {_first_line(error)}") from error
    say("Exchanges and queues are declared.")


def _first_line(error: Exception) -> str:
    if (problem := certificate_problem(error)) is not None:
        return f"{problem}. Check PODIUM_DATABASE_CA_FILE, PODIUM_AMQP_CA_FILE and the hosts in the addresses."
    return next(iter(str(error).splitlines()), type(error).__name__)
