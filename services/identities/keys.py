"""Creating, listing, rotating and revoking API keys. A secret is returned once, and only its digest is stored."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.caller import Caller
from services.domain.identity import Scope
from services.errors import KeyNameTaken, KeyNotFound
from services.identities.audit import record
from services.storage.models import Key

# A fixed prefix, so that scanners for secrets can find keys in repositories and logs.
KEY_PREFIX = "podium_"
_RANDOM_BYTES = 32
HINT_LENGTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a new key allows. `agents` are names, or prefixes that end with `*`; None: all agents."""

    name: str
    scopes: tuple[Scope, ...]
    agents: tuple[str, ...] | None = None
    owner: str | None = None
    valid_for: timedelta | None = None
    calls_per_second: float | None = None
    calls_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key, and its secret, which cannot be read again."""

    key: Key
    secret: str = field(repr=False)


def new_secret() -> str:
    """A random key that cannot be guessed."""
    return f"{KEY_PREFIX}{secrets.token_urlsafe(_RANDOM_BYTES)}"


def digest_of(secret: str) -> bytes:
    """What is stored of a key. Keys are random, so one fast hash is enough."""
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()


async def create_key(session: AsyncSession, new: NewKey, caller: Caller) -> IssuedKey:
    """Create a key; it is valid once the transaction is committed. Raises `KeyNameTaken`."""
    taken = select(Key.id).where(Key.name == new.name, Key.revoked_at.is_(None))
    if await session.scalar(taken) is not None:
        raise KeyNameTaken(f"There is a key named {new.name}: choose another name, or rotate or revoke that one.")
    secret = new_secret()
    key = Key(
        name=new.name,
        owner=new.owner,
        scopes=sorted(set(new.scopes)),
        agents=None if new.agents is None else sorted(set(new.agents)),
        secret_sha256=digest_of(secret),
        hint=secret[-HINT_LENGTH:],
        calls_per_second=new.calls_per_second,
        calls_in_flight=new.calls_in_flight,
        created_by=caller.actor,
        expires_at=None if new.valid_for is None else func.clock_timestamp() + new.valid_for,
    )
    session.add(key)
    await session.flush()
    await session.refresh(key)
    await record(session, caller, "key.created", key.name, details=_described(key))
    return IssuedKey(key, secret)


async def list_keys(session: AsyncSession, *, limit: int, offset: int = 0, revoked: bool = False) -> Sequence[Key]:
    """The keys by name; with `revoked` also those that were revoked."""
    query = select(Key).order_by(Key.name, Key.created_at).limit(limit).offset(offset)
    return (await session.scalars(query if revoked else query.where(Key.revoked_at.is_(None)))).all()


async def get_key(session: AsyncSession, key_id: UUID, *, lock: bool = False) -> Key:
    """The key, revoked or not; with `lock`, nobody else changes it until the end. Raises `KeyNotFound`."""
    key = await session.get(Key, key_id, with_for_update=True if lock else None)
    if key is None:
        raise KeyNotFound
    return key


async def rotate_key(session: AsyncSession, key_id: UUID, caller: Caller, *, overlap: timedelta) -> IssuedKey:
    """Give the key a new secret; the one before stays valid for `overlap`. Raises `KeyNotFound`.

    A secret that was still valid from an earlier rotation ends at once.
    """
    key = await _locked(session, key_id)
    now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    secret = new_secret()
    key.previous_sha256 = key.secret_sha256 if overlap else None
    key.previous_until = now + overlap if overlap else None
    key.secret_sha256, key.hint, key.rotated_at = digest_of(secret), secret[-HINT_LENGTH:], now
    await session.flush()
    details: dict[str, object] = {"id": str(key.id), "overlap_seconds": overlap.total_seconds()}
    await record(session, caller, "key.rotated", key.name, details=details)
    return IssuedKey(key, secret)


async def revoke_key(session: AsyncSession, key_id: UUID, caller: Caller) -> Key:
    """End the key: every process refuses it from the next request after the commit on. Idempotent.

    Raises `KeyNotFound`.
    """
    key = await get_key(session, key_id, lock=True)
    if key.revoked_at is None:
        key.revoked_at = (await session.execute(select(func.clock_timestamp()))).scalar_one()
        await session.flush()
        await record(session, caller, "key.revoked", key.name, details={"id": str(key.id)})
    return key


async def _locked(session: AsyncSession, key_id: UUID) -> Key:
    key = await get_key(session, key_id, lock=True)
    if key.revoked_at is not None:
        raise KeyNotFound
    return key


def _described(key: Key) -> dict[str, object]:
    return {
        "id": str(key.id),
        "owner": key.owner,
        "scopes": key.scopes,
        "agents": key.agents,
        "expires_at": None if key.expires_at is None else key.expires_at.isoformat(),
        "calls_per_second": key.calls_per_second,
        "calls_in_flight": key.calls_in_flight,
    }
