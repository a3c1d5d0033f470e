"""Registrations and their outcomes ("why is my pod not there?"), and parked messages, which can be sent again."""

from typing import Annotated, Any

from litestar import get, post
from litestar.params import FromPath, QueryParameter
from litestar.response import Template

from api.console.page import OnPage, Page, go
from api.http.parameters import agent_filter, parked_uuid
from api.routes.parked import ParkedMessageAnswer, drop, found_parked, send_again
from services.errors import PodiumError
from services.registration.inbox import Lifetime, recent_registrations
from services.registration.parked import list_parked
from services.storage.database import in_transaction
from services.storage.pages import Page as Rows

SHOWN = 50
OUTCOMES = {
    "Registered": "Applied.",
    "Stale": "A newer message had been applied before; this one changed nothing.",
    "Shadowed": "The legacy address is stored, but production goes on serving.",
    "Departed": "The pod said goodbye.",
    "Rejected": "Refused; nothing was changed.",
    "Parked": "Could not be applied; it waits among the parked messages.",
}
Agent = Annotated[str | None, QueryParameter(max_length=63)]
Number = Annotated[int, QueryParameter(ge=1, le=100_000)]


@get("/console/registrations", include_in_schema=False)
async def show_registrations(page: OnPage, agent: Agent = None, number: Number = 1) -> Template:
    """What came of recent announcements, newest first; of one agent name, or of all."""
    name = agent_filter((agent or "").strip() or None)
    rows = Rows(limit=SHOWN, number=number)
    found = await in_transaction(
        page.resources.reads,
        lambda session: recent_registrations(session, Lifetime(name, identity=page.identity), rows),
    )
    return page.show(
        "registrations.html", found=found, outcomes=OUTCOMES, **_paged("/console/registrations", name, number, found)
    )


@get("/console/parked", include_in_schema=False)
async def show_parked(page: OnPage, agent: Agent = None, number: Number = 1) -> Template:
    """Messages that could not be applied, newest first; of one agent name, or of all."""
    name = agent_filter((agent or "").strip() or None)
    rows = Rows(limit=SHOWN, number=number)
    found = await in_transaction(page.resources.reads, lambda session: list_parked(session, rows, name, page.identity))
    return page.show("parked.html", found=found, **_paged("/console/parked", name, number, found))


def _paged(path: str, name: str | None, number: int, found: Any) -> dict[str, Any]:  # noqa: ANN401 - any rows
    filtered = f"agent={name}&" if name else ""
    return {
        "name": name,
        "own_url": f"{path}?{filtered}number={number}",
        "earlier": f"{path}?{filtered}number={number - 1}" if number > 1 else None,
        "later": f"{path}?{filtered}number={number + 1}" if len(found) == SHOWN else None,
    }


@get("/console/parked/{parked_id:str}", include_in_schema=False)
async def show_parked_message(parked_id: FromPath[str], page: OnPage) -> Template:
    """One parked message with its body."""
    return await _message(page, parked_id)


@post("/console/parked/{parked_id:str}/{action:str}", include_in_schema=False, status_code=200)
async def change_parked(parked_id: FromPath[str], action: FromPath[str], page: OnPage) -> Any:  # noqa: ANN401 - a page
    """Send the message again (`retry`), or delete it (`drop`)."""
    form = await page.form()
    page.require("admin")
    uuid = parked_uuid(parked_id)
    try:
        if action == "drop":
            await drop(page.resources, uuid, page.request)
            return go("/console/parked")
        await send_again(page.resources, uuid, page.request, accept_unsigned=form.get("accept_unsigned") == "yes")
    except PodiumError as error:
        return await _message(page, parked_id, error)
    return go(f"/console/parked/{uuid}")


async def _message(page: Page, parked_id: str, error: PodiumError | None = None) -> Template:
    uuid = parked_uuid(parked_id)
    message = ParkedMessageAnswer.of(await found_parked(page.resources, uuid, page.request))
    return page.show(
        "parked_message.html",
        status=error.status if error else 200,
        message=message,
        error=error,
        signed_only=page.resources.settings.require_signed_announcements,
        own_url=f"/console/parked/{uuid}",
    )


ROUTES = [show_registrations, show_parked, show_parked_message, change_parked]
