"""The settings with which the API starts, and those with which it refuses to."""

import subprocess
import sys

import pytest
from pydantic import SecretStr

from api.app import create_app
from api.auth.binding import StartRefused, check_bind
from services.settings import Settings
from tests.support.processes import ROOT

SECRET = SecretStr("a secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_this_machine_alone_needs_no_api_key(host: str) -> None:
    """A loopback address is enough."""
    check_bind(Settings(host=host, secret_key=SECRET))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "podium.example", ""])  # noqa: S104 - to be refused
def test_any_other_bind_needs_an_api_key(host: str) -> None:
    """Without a key the API refuses to start and names the variable; with a key it starts."""
    settings = Settings(host=host, secret_key=SECRET)
    for refuses in (check_bind, create_app):
        with pytest.raises(StartRefused, match=r"refuses to start.*PODIUM_API_KEY"):
            refuses(settings)
    check_bind(settings.model_copy(update={"api_key": SecretStr("key")}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - to be refused
def test_every_bind_needs_a_secret_key(host: str) -> None:
    """A random key would differ between processes."""
    settings = Settings(host=host, api_key=SecretStr("key"))
    for refuses in (check_bind, create_app):
        with pytest.raises(StartRefused, match=r"refuses to start.*PODIUM_SECRET_KEY"):
            refuses(settings)


def test_a_low_limit_of_descriptors_is_raised() -> None:
    """The soft limit rises to the hard limit, or to the maximum that Podium wants."""
    program = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
from api.app import MAX_DESCRIPTORS, allow_many_connections
allow_many_connections()
soft, still = resource.getrlimit(resource.RLIMIT_NOFILE)
assert still == hard
assert soft == (MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)), soft
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
