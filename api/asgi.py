"""The application for whichever ASGI server: `granian --interface asgi --factory api.asgi:application`.

`podium api` needs none of this. Another server has its own limits of headers and connections, and its own way to stop.
"""

from litestar import Litestar

from api.app import create_app
from services.settings import Settings


def application() -> Litestar:
    """The application with the settings of the environment. Raises `StartRefused`."""
    return create_app(Settings())
