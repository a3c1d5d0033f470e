"""The Litestar application."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from prometheus_client import CollectorRegistry

from api import agents, deployments, health, openapi, registration, rpc
from api.auth import PUBLIC, check_bind, check_caller
from api.metrics import Measured, metrics_route
from api.problems import EXCEPTION_HANDLERS
from api.resources import Resources, provide_resources
from api.upstream import upstream_session
from contracts.messages import REGISTRATION_MAX_BYTES
from services.database import make_engine, make_sessions
from services.settings import Settings
from services.wake import Waker

APPLICATION_NAME = "podium-api"


def create_app(settings: Settings) -> Litestar:
    """The application; it connects to nothing before it is asked. Raises `StartRefused`."""
    check_bind(settings)
    registry = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
        async with _open(settings) as resources:
            app.state.resources = resources
            yield

    app = Litestar(
        route_handlers=[
            *registration.ROUTES,
            *agents.ROUTES,
            *deployments.ROUTES,
            *rpc.ROUTES,
            *health.ROUTES,
            *openapi.ROUTES,
            metrics_route(registry),
        ],
        dependencies={"resources": Provide(provide_resources, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        guards=[check_caller],
        lifespan=[lifespan],
        logging_config=None,
        openapi_config=_openapi_config(),
        request_max_body_size=REGISTRATION_MAX_BYTES,
    )
    # Outside of routing, so that requests that no route takes are counted too.
    app.asgi_handler = Measured(app.asgi_handler, registry)
    return app


@asynccontextmanager
async def _open(settings: Settings) -> AsyncGenerator[Resources, None]:
    """What handlers need, until the application stops."""
    engine = make_engine(settings, application_name=APPLICATION_NAME)
    try:
        async with Waker(engine) as waker, upstream_session() as http:
            yield Resources(
                settings=settings,
                sessions=make_sessions(engine),
                reads=make_sessions(engine.execution_options(isolation_level="AUTOCOMMIT")),
                waker=waker,
                http=http,
            )
    finally:
        await engine.dispose()


def _openapi_config() -> OpenAPIConfig:
    """The description is JSON alone: pages that render it load scripts from elsewhere."""
    return OpenAPIConfig(
        title="Podium",
        version=version("podium"),
        description="The control plane for versioned deployments of AI agents.",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin()],
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, opt=PUBLIC),
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(type="http", scheme="bearer"),
                "key": SecurityScheme(type="apiKey", name="x-api-key", security_scheme_in="header"),
            }
        ),
        security=[{"bearer": []}, {"key": []}, {}],
    )
