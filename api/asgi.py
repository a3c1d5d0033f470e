"""The application for other ASGI servers: `granian --interface asgi --factory api.asgi:application`.

`podium api` does not use this module. Other servers have their own limits of headers and connections, and shut down
differently.
"""

from litestar import Litestar

from api.app import create_app
from services.settings import Settings


def application() -> Litestar:
    """The application, configured from the environment. Raises `StartRefused`."""
    return create_app(Settings())
