"""Where Podium is: what the caller says, else the environment, else what `podium up` wrote, else this machine."""

import os
from collections.abc import Mapping
from pathlib import Path

DEFAULT_API_URL = "http://127.0.0.1:8080"
ENV_FILE = Path(".podium") / "podium.env"


def environment(environ: Mapping[str, str] = os.environ, env_file: Path = ENV_FILE) -> dict[str, str]:
    """Every PODIUM_* variable; the environment's own go before those of the file that `podium up` keeps."""
    own = {name: value for name, value in environ.items() if name.startswith("PODIUM_") and value}
    return {**_written(env_file), **own}


def api_url(given: str | None, found: Mapping[str, str]) -> str:
    """The API's address, without a slash at its end."""
    return (given or found.get("PODIUM_API_URL") or DEFAULT_API_URL).rstrip("/")


def api_key(
    given: str | None, url: str, environ: Mapping[str, str] = os.environ, env_file: Path = ENV_FILE
) -> str | None:
    """The key for the API at this address; the one that `podium up` keeps goes to its own API alone."""
    written = _written(env_file)
    kept = written.get("PODIUM_API_KEY") if url == api_url(None, written) else None
    return given or environ.get("PODIUM_API_KEY") or kept or None


def _written(env_file: Path) -> dict[str, str]:
    """The lines NAME=value of the file; nothing if there is none that we may read."""
    try:
        lines = env_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in lines if line.startswith("PODIUM_"))
    return {name: value for name, _, value in pairs if value}
