"""Liveness and readiness of this process."""

import asyncio
from urllib.parse import urlsplit

from litestar import HttpMethod, Response, route
from litestar.openapi import ResponseSpec
from sqlalchemy.exc import SQLAlchemyError

from api.http.access import PUBLIC
from api.http.problems import documented_public
from api.http.responses import PartHealth, Readiness
from api.resources import Injected, Resources
from services.health.janitors import living_janitors
from services.storage.database import Sessions
from services.tls import broker_options, certificate_problem

BROKER_LIMIT_SECONDS = 1
JANITORS_LIMIT_SECONDS = 1
_AMQP_PORTS = {"amqp": 5672, "amqps": 5671}


# Some load balancers check with HEAD.
METHODS = [HttpMethod.GET, HttpMethod.HEAD]


@route(
    "/health/live",
    http_method=METHODS,
    status_code=200,
    opt=PUBLIC,
    responses=documented_public(),
)
async def check_live() -> dict[str, str]:
    """200 while this process answers requests."""
    return {"status": "live"}


@route(
    "/health/ready",
    http_method=METHODS,
    status_code=200,
    opt=PUBLIC,
    responses={**documented_public(), 503: ResponseSpec(Readiness, generate_examples=False)},
)
async def check_ready(resources: Injected) -> Response[Readiness]:
    """200 if the database answers, else 503. The broker and a janitor in panic are only reported.

    The workers need the broker, the API does not.
    """
    parts = await check_parts(resources)
    is_ready = parts["database"].ok
    return Response(
        Readiness(status="ready" if is_ready else "not ready", parts=parts), status_code=200 if is_ready else 503
    )


async def check_parts(resources: Resources) -> dict[str, PartHealth]:
    """Whether the database and the broker answer, and whether a janitor is in panic."""
    names = ("database", "broker", "janitors")
    found = await asyncio.gather(_database(resources), _broker(resources), _janitors(resources.reads))
    return dict(zip(names, found, strict=True))


async def _database(resources: Resources) -> PartHealth:
    failure = await resources.database.failure()
    return PartHealth(ok=failure is None, detail=failure)


async def _janitors(reads: Sessions) -> PartHealth:
    try:
        async with asyncio.timeout(JANITORS_LIMIT_SECONDS), reads() as session:
            janitors = await living_janitors(session)
    except (TimeoutError, SQLAlchemyError, OSError):
        return PartHealth(ok=False, detail="cannot be read")
    panics = [janitor.in_panic for janitor in janitors if janitor.in_panic]
    return PartHealth(ok=not panics, detail="; ".join(panics) or None)


async def _broker(resources: Resources) -> PartHealth:
    url = urlsplit(resources.settings.amqp_url.get_secret_value())
    if not url.hostname:
        return PartHealth(ok=False, detail="not configured")
    try:
        async with asyncio.timeout(BROKER_LIMIT_SECONDS):
            _, writer = await asyncio.open_connection(
                url.hostname, url.port or _AMQP_PORTS.get(url.scheme), **broker_options(resources.settings)
            )
            writer.close()
            await writer.wait_closed()
    except (OSError, ValueError) as error:
        return PartHealth(ok=False, detail=certificate_problem(error) or "cannot be reached")
    return PartHealth(ok=True)


ROUTES = [check_live, check_ready]
