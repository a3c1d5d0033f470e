"""API keys: who may do what. A secret is in the answer that makes it, and nowhere else."""

from datetime import datetime, timedelta
from typing import Annotated, Self
from uuid import UUID

from litestar import delete, get, post
from litestar.params import FromPath, JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.http.access import needs
from api.http.parameters import AnyRequest, Limit, PageNumber, caller, key_uuid
from api.http.problems import documented
from api.http.requests import CallsInFlight, CallsPerSecond, JsonBody
from api.http.responses import DeletedAnswer
from api.resources import Injected
from contracts.fields import AgentName, Text
from services.domain.identity import AGENT_PATTERN, Scope
from services.identities.keys import IssuedKey, NewKey, create_key, list_keys, revoke_key, rotate_key
from services.storage.database import in_transaction
from services.storage.models import Key
from services.storage.pages import Page

ITEM = "/keys/{key_id:str}"
MOST_AGENTS = 100
LONGEST_OVERLAP = timedelta(days=30)
LONGEST_VALIDITY = timedelta(days=3653)

_RULE = needs("admin", agents="all")
_Pattern = Annotated[str, StringConstraints(pattern=AGENT_PATTERN)]


class NewKeyRequest(BaseModel):
    """A new key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: AgentName = Field(description="The name of the key in the ledger and the audit log, after 'key:'.")
    scopes: Annotated[list[Scope], Field(min_length=1)] = Field(description="What its holder may do.")
    agents: Annotated[list[_Pattern], Field(min_length=1, max_length=MOST_AGENTS)] | None = Field(
        default=None, description="The names of the agents it is for, or prefixes such as 'team-*'; null: all agents."
    )
    owner: Annotated[Text, StringConstraints(max_length=200)] | None = Field(
        default=None, description="Whom to ask about the key."
    )
    expires_in_seconds: Annotated[float, Field(strict=True, gt=0, le=LONGEST_VALIDITY.total_seconds())] | None = Field(
        default=None, description="How long the key is valid; null: until it is revoked."
    )
    calls_per_second: CallsPerSecond | None = Field(
        default=None, description="RPC calls per second and API process; null: no limit."
    )
    calls_in_flight: CallsInFlight | None = Field(
        default=None, description="RPC calls under way per API process; null: no limit."
    )

    def command(self) -> NewKey:
        """The service command for this request."""
        return NewKey(
            name=self.name,
            scopes=tuple(self.scopes),
            agents=None if self.agents is None else tuple(self.agents),
            owner=self.owner,
            valid_for=None if self.expires_in_seconds is None else timedelta(seconds=self.expires_in_seconds),
            calls_per_second=self.calls_per_second,
            calls_in_flight=self.calls_in_flight,
        )


class RotateKeyRequest(BaseModel):
    """How long the secret before the new one stays valid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap_seconds: Annotated[float, Field(strict=True, ge=0, le=LONGEST_OVERLAP.total_seconds())] = Field(
        default=0, description="0: it ends at once."
    )


class KeyAnswer(BaseModel):
    """A key, without its secret."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    name: str
    owner: str | None
    scopes: list[Scope]
    agents: list[str] | None = Field(description="Names of agents, or prefixes that end with '*'; null: all agents.")
    hint: str = Field(description="The last characters of the secret.")
    calls_per_second: float | None
    calls_in_flight: int | None
    created_at: datetime
    created_by: str
    rotated_at: datetime | None
    previous_until: datetime | None = Field(description="Until when the secret before the current one is valid.")
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")


class IssuedKeyAnswer(KeyAnswer):
    """A key with its secret."""

    secret: str = Field(repr=False, description="The key to send. It cannot be read again.")

    @classmethod
    def of(cls, issued: IssuedKey) -> Self:
        """The answer for a new secret."""
        return cls(**KeyAnswer.model_validate(issued.key).model_dump(), secret=issued.secret)


Revoked = Annotated[bool, QueryParameter(description="Also keys that were revoked.")]


@post(
    "/keys",
    status_code=200,
    opt=_RULE,
    dto=JsonBody[NewKeyRequest],
    return_dto=None,
    operation_id="create_key",
    responses=documented(409, 413, 415),
)
async def create(data: JSONBody[NewKeyRequest], request: AnyRequest, resources: Injected) -> IssuedKeyAnswer:
    """Create an API key. The answer contains its secret, which cannot be read again."""
    change = caller(request)
    issued = await in_transaction(resources.sessions, lambda session: create_key(session, data.command(), change))
    return IssuedKeyAnswer.of(issued)


@get("/keys", opt=_RULE, operation_id="list_keys", responses=documented())
async def read_keys(
    *, resources: Injected, limit: Limit = 50, page_number: PageNumber = 1, revoked: Revoked = False
) -> list[KeyAnswer]:
    """The API keys by name, without their secrets."""
    page = Page(limit=limit, number=page_number)
    keys = await in_transaction(
        resources.reads, lambda session: list_keys(session, limit=page.limit, offset=page.offset, revoked=revoked)
    )
    return [KeyAnswer.model_validate(key) for key in keys]


@post(
    f"{ITEM}/rotate",
    status_code=200,
    opt=_RULE,
    dto=JsonBody[RotateKeyRequest],
    return_dto=None,
    operation_id="rotate_key",
    responses=documented(404, 413, 415),
)
async def rotate(
    key_id: FromPath[str], data: JSONBody[RotateKeyRequest], request: AnyRequest, resources: Injected
) -> IssuedKeyAnswer:
    """Give a key a new secret. The one before stays valid for the overlap."""
    uuid, change, overlap = key_uuid(key_id), caller(request), timedelta(seconds=data.overlap_seconds)
    issued = await in_transaction(
        resources.sessions, lambda session: rotate_key(session, uuid, change, overlap=overlap)
    )
    return IssuedKeyAnswer.of(issued)


@delete(ITEM, status_code=200, opt=_RULE, operation_id="revoke_key", responses=documented(404))
async def revoke(key_id: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Revoke a key: every API process refuses it from the next request on. Idempotent."""
    uuid, change = key_uuid(key_id), caller(request)
    key: Key = await in_transaction(resources.sessions, lambda session: revoke_key(session, uuid, change))
    return DeletedAnswer(id=str(uuid), message=f"Key {key.name} is revoked.")


ROUTES = [create, read_keys, rotate, revoke]
