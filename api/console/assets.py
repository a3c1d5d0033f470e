"""The files that pages load: read once, and served under a path that changes with their content."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from api.http.access import PUBLIC

PREFIX = "/console/static"
MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
# Its path changes with its content, so a browser never asks for a file again.
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    content: bytes
    media_type: str
    digest: str


@cache
def assets() -> dict[str, Asset]:
    """All files by name."""
    found = {}
    for file in files("api.console").joinpath("static").iterdir():
        media_type = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, media_type, hashlib.sha256(content).hexdigest()[:16])
    return found


def asset_path(name: str) -> str:
    """The path of a file, for templates."""
    return f"{PREFIX}/{assets()[name].digest}/{name}"


@get(f"{PREFIX}/{{digest:str}}/{{name:str}}", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def serve_asset(digest: FromPath[str], name: FromPath[str]) -> Response[Any]:
    """A file of the console."""
    asset = assets().get(name)
    if asset is None or asset.digest != digest:
        raise NotFoundException
    headers = {"cache-control": FOREVER, "x-content-type-options": "nosniff", "content-type": asset.media_type}
    return Response(asset.content, headers=headers)


ROUTES = [serve_asset]
