"""Checks of API keys against the database, together for the callers that come at the same time.

A check never joins a read that began before it, so a key that was revoked, anywhere, is refused from the next request
on. Calls are many: for them the version of the keys, which each read of a route returns, shows whether what a process
remembers of a key is still true.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from services.domain.identity import Identity, limits_of
from services.settings import Settings
from services.storage.driver import Row
from services.storage.shared_reads import Outages, SharedReads

_OUTAGES = Outages(
    away="Keys cannot be read: requests with keys get 503.",
    away_action="keys.away",
    back="Keys are read again.",
    back_action="keys.back",
)
# Of how many keys a process remembers what it has read.
REMEMBERED = 10_000

# The current value of the number that each change of a key increases.
KEYS_VERSION = "(SELECT version FROM keys_version WHERE id)"
_COLUMNS = f"""
SELECT wanted.digest, k.id, k.name, k.scopes, k.agents, k.calls_per_second, k.calls_in_flight,
       {{expires_at}} AS expires_at, {KEYS_VERSION} AS keys_version
FROM unnest($1::bytea[]) AS wanted(digest)"""  # noqa: S608 - built from constants only
_VALID = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())"
# LATERAL with a limit: one lookup in an index per key, whatever the planner knows about the table.
READ_KEYS = f"""
{_COLUMNS.format(expires_at="k.expires_at")}
CROSS JOIN LATERAL (SELECT * FROM keys WHERE secret_sha256 = wanted.digest LIMIT 1) AS k
WHERE {_VALID}
UNION ALL
{_COLUMNS.format(expires_at="least(k.expires_at, k.previous_until)")}
CROSS JOIN LATERAL (SELECT * FROM keys WHERE previous_sha256 = wanted.digest LIMIT 1) AS k
WHERE {_VALID} AND k.previous_until > clock_timestamp()
"""  # noqa: S608 - built from constants only


class KeyReads(SharedReads[bytes]):
    """Reads keys by the digest of their secret, on a dedicated connection; use it as a context manager."""

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        super().__init__(
            settings, application_name=application_name, timeout=settings.database_timeout / 2, outages=_OUTAGES
        )
        self._remembered: dict[bytes, Identity] = {}

    async def identity(self, digest: bytes) -> Identity | None:
        """The identity of a key that is valid now; None for any other. Raises `Unavailable`."""
        row = await self.row(digest)
        self._remembered.pop(digest, None)
        if row is None:
            return None
        identity = _identity(row)
        self._remembered[digest] = identity
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return identity

    def remembered(self, digest: bytes) -> Identity | None:
        """The identity as it was read last. It is true while `keys_version` is the one in the database."""
        identity = self._remembered.get(digest)
        if identity is not None and identity.expires_at is not None and identity.expires_at <= datetime.now(UTC):
            return None
        return identity

    def _sql(self) -> tuple[str, ...]:
        return (READ_KEYS,)

    def _chosen(self, keys: Collection[bytes]) -> tuple[int, tuple[Any, ...]]:
        return 0, (list(keys),)

    def _key_of(self, row: Row) -> bytes:
        digest: bytes = row["digest"]
        return digest


def _identity(row: Row) -> Identity:
    return Identity(
        actor=f"key:{row['name']}",
        scopes=frozenset(row["scopes"]),
        agents=None if row["agents"] is None else tuple(row["agents"]),
        limits=limits_of(row["calls_per_second"], row["calls_in_flight"]),
        expires_at=row["expires_at"],
        key_id=row["id"],
        keys_version=row["keys_version"],
    )
