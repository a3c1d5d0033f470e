"""The audit log: who changed what, when, in which request and for whom."""

from typing import Annotated
from urllib.parse import urlencode

from litestar import get
from litestar.params import QueryParameter
from litestar.response import Template

from api.console.page import OnPage
from api.http.parameters import agent_filter
from api.routes.audit import FILTER_MAX_LENGTH, Before, actor_filter, entry_id
from services.errors import InvalidRequest
from services.identities.audit import list_audit
from services.storage.database import in_transaction

PATH = "/console/audit"
SHOWN = 50
ACTIONS = {
    "key.created": "Key created",
    "key.rotated": "Key rotated",
    "key.revoked": "Key revoked",
    "agent.changed": "Agent changed",
    "agent.deleted": "Agent deleted",
    "deployment.created": "Version created",
    "deployment.deleted": "Version deleted",
    "parked.retried": "Parked message sent again",
    "parked.dropped": "Parked message dropped",
    "webhook.created": "Webhook created",
    "webhook.deleted": "Webhook deleted",
    "webhook.rotated": "Webhook secret rotated",
    "webhook.paused": "Webhook paused",
    "webhook.resumed": "Webhook resumed",
    "webhook.replayed": "Webhook replayed",
    "webhook.tested": "Webhook tested",
    "webhook.disabled": "Webhook disabled",
}
Text = Annotated[str, QueryParameter(max_length=FILTER_MAX_LENGTH)]


@get(PATH, include_in_schema=False)
async def show_audit(
    page: OnPage, agent: Text = "", actor: Text = "", action: Text = "", before: Before = None
) -> Template:
    """The changes that the visitor may see, newest first, 50 at a time; of one agent, actor or action, or all."""
    page.require("admin")
    name, who = agent_filter(agent.strip() or None), actor_filter(actor.strip()) or ""
    if action and action not in ACTIONS:
        raise InvalidRequest("action must be one of those on the page.", field="action")
    first = entry_id(before)
    found = await in_transaction(
        page.resources.reads,
        lambda session: list_audit(
            session, page.identity, limit=SHOWN + 1, before=first,
            agent_name=name, actor=who or None, action=action or None,
        ),
    )  # fmt: skip
    kept = {key: value for key, value in (("agent", name), ("actor", who), ("action", action)) if value}
    shown = found[:SHOWN]
    return page.show(
        "audit.html",
        entries=shown,
        actions=ACTIONS,
        agent=name or "",
        actor=who,
        action=action,
        is_filtered=bool(kept),
        newest=f"{PATH}?{urlencode(kept)}" if first is not None else None,
        older=f"{PATH}?{urlencode({**kept, 'before': shown[-1].id})}" if len(found) > SHOWN else None,
    )


ROUTES = [show_audit]
