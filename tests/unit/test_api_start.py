"""With which settings the API starts at all."""

import pytest
from pydantic import SecretStr

from api.app import create_app
from api.auth import StartRefused, check_bind
from services.settings import Settings

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
