"""The health of the system: what waits, since when, and who does the work."""

import asyncio
from dataclasses import dataclass

from aio_pika import Connection
from aio_pika.exceptions import AMQPError
from litestar import get
from litestar.response import Template
from yarl import URL

from api.console.page import OnPage
from api.routes.health import check_parts
from contracts.topology import PARKED_QUEUE, REGISTRATIONS_QUEUE
from services.agents.system_state import system_state
from services.errors import Unavailable
from services.settings import Settings
from services.storage.database import in_transaction

BROKER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of the broker: its messages and consumers."""

    name: str
    messages: int
    consumers: int


@get("/console/system", include_in_schema=False)
async def show_system(page: OnPage) -> Template:
    """What waits, since when, and who does the work."""
    page.require_all_agents()
    resources = page.resources
    parts, queues = await asyncio.gather(check_parts(resources), read_queues(resources.settings))
    try:
        state = await in_transaction(resources.reads, system_state)
    except Unavailable:
        state = None
    shown = [(name.capitalize(), part) for name, part in parts.items()]
    return page.show("system.html", parts_health=shown, queues=queues, state=state, own_url="/console/system")


async def read_queues(settings: Settings) -> list[Queue] | None:
    """The queues of registrations and of dead letters; None if the broker does not say."""
    url = settings.amqp_url.get_secret_value()
    if not url:
        return None
    connection = Connection(URL(url))
    try:
        async with asyncio.timeout(BROKER_SECONDS):
            await connection.connect()
            channel = await connection.channel()
            found = []
            for name in (REGISTRATIONS_QUEUE, PARKED_QUEUE):
                declared = (await channel.declare_queue(name, passive=True)).declaration_result
                found.append(Queue(name, declared.message_count or 0, declared.consumer_count or 0))
    except (AMQPError, OSError, RuntimeError):
        return None
    finally:
        await connection.close()
    return found


ROUTES = [show_system]
