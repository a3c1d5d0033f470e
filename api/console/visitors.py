"""Who uses the console, and what they may do: the one place that knows about keys.

A session keeps no key, only a `proof`: a value from which the key cannot be found, and which no longer holds when the
key changes.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from api.resources import Resources
from services.api_keys import same_secret
from services.settings import Settings

Scope = Literal["read", "register", "invoke", "promote", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset({"read", "register", "invoke", "promote", "admin"})


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person at the console. `name` is the actor of the changes that they make."""

    name: str
    scopes: frozenset[Scope] = ALL_SCOPES

    def may(self, scope: Scope) -> bool:
        """Whether the visitor may do what needs this scope."""
        return scope in self.scopes


def must_sign_in(settings: Settings) -> bool:
    """Whether the console asks for a key."""
    return bool(settings.api_key.get_secret_value())


async def prove(resources: Resources, key: str) -> str | None:
    """The proof of a valid key, for a session; None for any other key."""
    settings = resources.settings
    if must_sign_in(settings) and same_secret(key, settings.api_key.get_secret_value()):
        return _proof(settings)
    return None


async def visitor_of(resources: Resources, proof: str | None) -> Visitor | None:
    """The visitor whose session has this proof; None if they have to sign in."""
    settings = resources.settings
    if not must_sign_in(settings) or (proof is not None and same_secret(proof, _proof(settings))):
        return Visitor(resources.actor)
    return None


def _proof(settings: Settings) -> str:
    secret = f"podium console proof {settings.secret_key.get_secret_value()}".encode()
    return hmac.new(secret, settings.api_key.get_secret_value().encode(), hashlib.sha256).hexdigest()
