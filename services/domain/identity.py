"""An identity: its name in the ledger, its scopes, and the agents that it may see."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

Scope = Literal["read", "register", "invoke", "promote", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# The name of an agent, or a prefix of names.
AGENT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}\*?$"
PREFIX_MARK = "*"

# The actors of callers without a name of their own.
LOCAL = "local"
API_KEY = "api-key"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an identity or an agent may call, per API process; None: without a limit."""

    calls_per_second: float | None = None
    calls_in_flight: int | None = None


NO_LIMITS = Limits()


def limits_of(calls_per_second: float | None, calls_in_flight: int | None) -> Limits:
    """These limits; the same object whenever there are none."""
    if calls_per_second is None and calls_in_flight is None:
        return NO_LIMITS
    return Limits(calls_per_second, calls_in_flight)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls. `agents` are names, or prefixes that end with `*`; None: all agents."""

    actor: str
    """The name in the ledger, the audit log and log lines: `key:ci-deploy`, `oidc:alice@example.com`."""
    scopes: frozenset[Scope]
    agents: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    expires_at: datetime | None = None
    key_id: UUID | None = None
    keys_version: int | None = None
    """The version of all keys when this one was read; None if this identity does not come from a stored key."""

    def may(self, *scopes: Scope) -> bool:
        """Whether it has one of these scopes. `admin` includes all others."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def sees(self, agent_name: str | None) -> bool:
        """Whether the agent of this name exists for it; None is an unknown name, which only those of all agents see."""
        if self.agents is None:
            return True
        return agent_name is not None and any(_matches(pattern, agent_name) for pattern in self.agents)

    def seen(self) -> tuple[list[str], list[str]] | None:
        """The names that it sees, and the prefixes of names, without their mark; None for all agents."""
        if self.agents is None:
            return None
        prefixes = [each[:-1] for each in self.agents if each.endswith(PREFIX_MARK)]
        return [each for each in self.agents if not each.endswith(PREFIX_MARK)], prefixes


# What a caller may do on an API without a key, and the holder of PODIUM_API_KEY.
EVERYBODY = Identity(LOCAL, frozenset(SCOPES))
API_KEY_HOLDER = Identity(API_KEY, frozenset(SCOPES))


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith(PREFIX_MARK) else name == pattern
