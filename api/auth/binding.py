"""Checks of the settings when the API starts."""

import os
from pathlib import Path

from api.auth.oidc.grants import GrantsInvalid, IssuerConfig, read_grants
from services.settings import Settings


class StartRefused(Exception):
    """The API refuses to start with these settings."""


def read_issuers(settings: Settings) -> list[IssuerConfig]:
    """The issuers whose tokens are accepted. Raises `StartRefused` if their file cannot be used."""
    try:
        issuers = read_grants(Path(settings.oidc_file)) if settings.oidc_file else []
    except GrantsInvalid as error:
        raise StartRefused(f"The API refuses to start, because of PODIUM_OIDC_FILE: {error}") from error
    for issuer in issuers:
        variable = issuer.console_client_secret_env
        if variable is not None and not os.environ.get(variable):
            raise StartRefused(
                f"The API refuses to start: {variable} is not set, which PODIUM_OIDC_FILE names for {issuer.url}."
            )
    return issuers


def check_bind(settings: Settings) -> None:
    """Check that the API has a secret key, and asks for keys if other machines can reach it.

    Raises `StartRefused` with a sentence that names the variable to set.
    """
    if not settings.secret_key.get_secret_value():
        raise StartRefused(
            "The API refuses to start: set PODIUM_SECRET_KEY, to the same value on every API process; "
            "agents' own keys are derived from it."
        )
    if not settings.on_loopback and not settings.keys_required:
        raise StartRefused(
            f"The API refuses to start on {settings.host} without a key: set PODIUM_API_KEY, "
            "or PODIUM_REQUIRE_KEYS=true to accept named keys only, "
            "or PODIUM_HOST=127.0.0.1 to serve this machine only."
        )
