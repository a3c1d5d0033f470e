"""From credentials to an identity."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from api.auth.failures import Failures
from api.auth.oidc.tokens import Tokens
from services.api_keys import AGENT_KEY_PREFIX, same_secret
from services.domain.identity import API_KEY_HOLDER, Identity
from services.errors import Unauthorized
from services.identities.key_reads import KeyReads
from services.identities.keys import KEY_PREFIX, digest_of
from services.identities.last_used import LastUsed, open_last_used
from services.settings import Settings
from services.storage.database import Sessions


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Checks credentials for one process."""

    api_key: str = field(repr=False)
    keys: KeyReads
    last_used: LastUsed
    failures: Failures
    tokens: Tokens

    async def identify(self, credentials: Sequence[str], address: str) -> Identity:
        """The identity of the first valid one of these keys, as it is now.

        Raises `Unauthorized`, `TooManyFailures`, and `Unavailable` if the database cannot be reached.
        """
        if self._has_api_key(credentials):
            return API_KEY_HOLDER
        for digest in _digests(credentials):
            if self.keys.remembered(digest) is None:
                self.failures.check(address)
            identity = await self.keys.identity(digest)
            if identity is not None:
                return self._used(identity)
        for token in filter(self.tokens.recognizes, credentials):
            if (accepted := self.tokens.accepted(token)) is not None:
                return accepted
            self.failures.check(address)
            if (identity := await self.tokens.identity(token)) is not None:
                return identity
        if credentials:
            self.failures.check(address)
            self.failures.record(address)
        raise Unauthorized

    async def identify_caller(self, credentials: Sequence[str], address: str) -> Identity:
        """The identity for a call. What is remembered of its key must be confirmed by the read of the route.

        Raises as `identify` does.
        """
        if self._has_api_key(credentials):
            return API_KEY_HOLDER
        for digest in _digests(credentials):
            identity = self.keys.remembered(digest)
            if identity is not None:
                return self._used(identity)
        return await self.identify(credentials, address)

    def recognizes(self, credential: str) -> bool:
        """Whether this is a credential for Podium, valid or not."""
        return (
            credential.startswith((KEY_PREFIX, AGENT_KEY_PREFIX))
            or self._has_api_key([credential])
            or self.tokens.recognizes(credential)
        )

    def _has_api_key(self, credentials: Sequence[str]) -> bool:
        return bool(self.api_key) and any(same_secret(given, self.api_key) for given in credentials)

    def _used(self, identity: Identity) -> Identity:
        if identity.key_id is not None:
            self.last_used.record(identity.key_id)
        return identity


@asynccontextmanager
async def open_authenticator(
    settings: Settings, sessions: Sessions, tokens: Tokens, registry: CollectorRegistry, *, application_name: str
) -> AsyncGenerator[Authenticator, None]:
    """The authenticator, closed on exit. It connects to nothing before the first key that it has to read."""
    async with (
        KeyReads(settings, application_name=application_name) as keys,
        open_last_used(sessions) as last_used,
    ):
        failures = Failures(settings, registry)
        yield Authenticator(settings.api_key.get_secret_value(), keys, last_used, failures, tokens)


def is_stored_key(credential: str) -> bool:
    """Whether this has the form of a key that `podium keys` makes."""
    return credential.startswith(KEY_PREFIX)


def _digests(credentials: Sequence[str]) -> list[bytes]:
    return [digest_of(each) for each in credentials if is_stored_key(each)]
