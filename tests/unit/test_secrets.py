"""Secrets do not show themselves."""

from datetime import UTC, datetime
from uuid import uuid4

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from api.auth.authenticator import open_authenticator
from api.auth.oidc.tokens import Tokens
from api.routes.keys import IssuedKeyAnswer
from services.identities.keys import IssuedKey, new_secret
from services.settings import Settings
from services.storage.database import Sessions, make_engine
from services.storage.models import Key

SECRET = "podium_a-secret-of-this-test"


def test_a_new_secret_cannot_be_guessed_and_can_be_found() -> None:
    """G73: 256 random bits, behind a prefix that scanners for secrets can look for."""
    secrets = {new_secret() for _ in range(1000)}
    assert len(secrets) == 1000
    assert all(secret.startswith("podium_") and len(secret) == 50 for secret in secrets)


async def test_no_object_shows_a_secret_when_it_is_printed() -> None:
    """G73: a traceback or a log line with such an object does not contain it."""
    settings = Settings(
        database_url=SecretStr(f"postgresql://podium:{SECRET}@127.0.0.1/podium"),
        amqp_url=SecretStr(f"amqp://podium:{SECRET}@127.0.0.1"),
        api_key=SecretStr(SECRET),
        secret_key=SecretStr(SECRET),
    )
    key = Key(id=uuid4(), name="ci", scopes=["read"], hint="test", created_at=datetime.now(UTC), created_by="amy")
    issued = IssuedKey(key, SECRET)
    engine = make_engine(settings, application_name="test", pool_size=1)
    async with open_authenticator(
        settings, Sessions(engine), Tokens([]), CollectorRegistry(), application_name="test"
    ) as authenticator:
        shown = [settings, issued, IssuedKeyAnswer.of(issued), authenticator, engine, CollectorRegistry()]
        for each in shown:
            assert SECRET not in f"{each!r} {each}", type(each)
    await engine.dispose()
