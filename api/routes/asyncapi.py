"""The description of what goes over the broker, as it is committed in `contracts/`."""

from importlib.resources import files

from litestar import Response, get

from api.http.access import PUBLIC


@get("/asyncapi", opt=PUBLIC, sync_to_thread=True)
def describe_messages() -> Response[bytes]:
    """The AsyncAPI document: announcements that pods publish, and events that Podium sends."""
    return Response(files("contracts").joinpath("asyncapi.json").read_bytes(), media_type="application/json")


ROUTES = [describe_messages]
