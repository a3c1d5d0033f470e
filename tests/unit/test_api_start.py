"""With which settings the API starts at all."""

import subprocess
import sys

import pytest
from pydantic import SecretStr

from api.app import create_app
from api.auth import StartRefused, check_bind
from services.settings import Settings
from tests.support.processes import ROOT

SECRET = SecretStr("a secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_this_machine_alone_needs_no_api_key(host: str) -> None:
    """Loopback is enough."""
    check_bind(Settings(host=host, secret_key=SECRET))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "podium.example", ""])  # noqa: S104 - to be refused
def test_any_other_bind_needs_an_api_key(host: str) -> None:
    """Refused with the name of what to set; with a key it starts."""
    settings = Settings(host=host, secret_key=SECRET)
    for refuses in (check_bind, create_app):
        with pytest.raises(StartRefused, match=r"refuses to start.*PODIUM_API_KEY"):
            refuses(settings)
    check_bind(settings.model_copy(update={"api_key": SecretStr("key")}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - to be refused
def test_no_bind_goes_without_a_secret_key(host: str) -> None:
    """A key made up at the start would differ on each process."""
    settings = Settings(host=host, api_key=SecretStr("key"))
    for refuses in (check_bind, create_app):
        with pytest.raises(StartRefused, match=r"refuses to start.*PODIUM_SECRET_KEY"):
            refuses(settings)


def test_a_low_limit_of_descriptors_is_raised() -> None:
    """As far as the process may go by itself."""
    program = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
from api.app import MOST_DESCRIPTORS, allow_many_connections
allow_many_connections()
soft, still = resource.getrlimit(resource.RLIMIT_NOFILE)
assert still == hard
assert soft == (MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)), soft
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
