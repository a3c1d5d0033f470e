"""The audit log: changes that are not in the ledger, with who made them."""

import re
from datetime import datetime
from typing import Annotated, Any

from litestar import get
from litestar.params import QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from api.http.access import needs
from api.http.parameters import AgentFilter, AnyRequest, Limit, agent_filter, identity_of
from api.http.problems import documented
from api.resources import Injected
from services.errors import InvalidRequest
from services.identities.audit import list_audit
from services.storage.database import in_transaction

ENTRY_ID_PATTERN = r"^[1-9][0-9]{0,17}$"
Before = Annotated[
    str | None,
    QueryParameter(description="Only entries before the one with this id.", schema_extra={"pattern": ENTRY_ID_PATTERN}),
]
ACTION_PATTERN = r"^[a-z]+([.-][a-z]+)*$"
FILTER_MAX_LENGTH = 300
ActorFilter = Annotated[
    str | None,
    QueryParameter(description="Only changes by this actor, such as 'key:ci-deploy'.", max_length=FILTER_MAX_LENGTH),
]
ActionFilter = Annotated[
    str | None,
    QueryParameter(
        description="Only changes of this kind, such as 'key.revoked'.",
        max_length=FILTER_MAX_LENGTH,
        schema_extra={"pattern": ACTION_PATTERN},
    ),
]


def entry_id(text: str | None) -> int | None:
    """The id in the query parameter `before`, if there is one. Raises `InvalidRequest` for a malformed one."""
    if text is None:
        return None
    if not re.fullmatch(ENTRY_ID_PATTERN, text):
        raise InvalidRequest("before must be the id of an entry, such as 42.", field="before")
    return int(text)


def actor_filter(text: str | None) -> str | None:
    """The actor in the query parameter `actor`, if there is one. Raises `InvalidRequest` for one that cannot be."""
    if text is not None and "\0" in text:
        raise InvalidRequest("actor must be an actor's name, such as key:ci-deploy.", field="actor")
    return text


def _action_filter(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(ACTION_PATTERN, text):
        raise InvalidRequest("action must be a word of the log, such as key.revoked.", field="action")
    return text


class AuditAnswer(BaseModel):
    """One change."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: int
    at: datetime
    actor: str
    action: str = Field(description="What was done: a stable word, such as 'key.revoked'.")
    subject: str = Field(description="What was changed: the id of an agent, deployment or message, the name of a key.")
    agent_name: str | None
    request_id: str | None
    on_behalf_of: str | None = Field(description="Whom the actor acted for, as it said.")
    details: dict[str, Any]


@get("/audit", opt=needs("admin", agents="answer"), operation_id="list_audit", responses=documented())
async def read_audit(
    *,
    request: AnyRequest,
    resources: Injected,
    agent: AgentFilter = None,
    actor: ActorFilter = None,
    action: ActionFilter = None,
    limit: Limit = 50,
    before: Before = None,
) -> list[AuditAnswer]:
    """Changes that are not in the ledger, newest first: keys, settings, deletions, parked messages."""
    name, identity, first = agent_filter(agent), identity_of(request), entry_id(before)
    who, what = actor_filter(actor), _action_filter(action)
    found = await in_transaction(
        resources.reads,
        lambda session: list_audit(
            session, identity, limit=limit, before=first, agent_name=name, actor=who, action=what
        ),
    )
    return [AuditAnswer.model_validate(each) for each in found]


ROUTES = [read_audit]
