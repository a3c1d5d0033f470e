"""API keys for admins: a list, and forms that create, rotate and revoke one.

A secret is in the answer to the form that makes it, which no browser keeps, and nowhere else.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

from litestar import get, post
from litestar.params import FromPath
from litestar.response import Template
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from api.console.messages import SHOWN, Number
from api.console.page import OnPage, Page, go
from api.console.previews import Preview
from api.console.words import ago, lasting
from api.http.parameters import caller, key_uuid
from api.http.requests import first_problem
from api.routes.keys import LONGEST_OVERLAP, NewKeyRequest, Revoked
from services.domain.identity import Scope
from services.errors import InvalidRequest, KeyNotFound, PodiumError
from services.identities.keys import IssuedKey, create_key, get_key, list_keys, revoke_key, rotate_key
from services.storage.database import in_transaction
from services.storage.models import Key

PATH = "/console/keys"
SCOPES: dict[Scope, str] = {
    "read": "see agents and what served",
    "register": "announce pods, create deployments",
    "invoke": "call agents",
    "promote": "promote, roll back, delete versions",
    "admin": "everything, also keys and deletions",
}
OVERLAPS = {"0": "none: it ends at once", "300": "5 minutes", "3600": "1 hour", "86400": "1 day", "604800": "7 days"}
assert set(SCOPES) == set(get_args(Scope))
assert max(map(int, OVERLAPS)) <= LONGEST_OVERLAP.total_seconds()


class KeyChanged(PodiumError):
    """This key has changed since you opened the page, so nothing was changed now."""

    status = 409
    reason = "key-changed"


@get(PATH, include_in_schema=False)
async def show_keys(*, page: OnPage, number: Number = 1, revoked: Revoked = False) -> Template:
    """The keys by name, without their secrets."""
    _require_keeper(page)
    found = await in_transaction(
        page.resources.reads,
        lambda session: list_keys(session, limit=SHOWN + 1, offset=(number - 1) * SHOWN, revoked=revoked),
    )
    query = f"{PATH}?revoked={str(revoked).lower()}&number="
    return page.show(
        "keys.html",
        keys=found[:SHOWN],
        revoked=revoked,
        earlier=f"{query}{number - 1}" if number > 1 else None,
        later=f"{query}{number + 1}" if len(found) > SHOWN else None,
    )


@get(f"{PATH}/new", include_in_schema=False)
async def ask_for_key(page: OnPage) -> Template:
    """The form for a new key."""
    _require_keeper(page)
    return _new(page, {})


@post(f"{PATH}/new", include_in_schema=False, status_code=200)
async def make_key(page: OnPage) -> Template:
    """Create the key, and show its secret once."""
    form = await page.form()
    _require_keeper(page)
    try:
        command = _request(form).command()
        change = caller(page.request)
        issued = await in_transaction(page.resources.sessions, lambda session: create_key(session, command, change))
    except PodiumError as error:
        return _new(page, form, error)
    return _show_secret(page, issued)


@get(f"{PATH}/{{key_id:str}}/{{action:str}}", include_in_schema=False)
async def ask_for_change(key_id: FromPath[str], action: FromPath[str], page: OnPage) -> Template:
    """What rotating or revoking the key will do, and the form that confirms it."""
    _require_keeper(page)
    return await _change_page(page, key_uuid(key_id), _action(action))


@post(f"{PATH}/{{key_id:str}}/{{action:str}}", include_in_schema=False, status_code=200)
async def confirm_change(key_id: FromPath[str], action: FromPath[str], page: OnPage) -> Any:  # noqa: ANN401 - a page
    """Rotate or revoke the key, if nobody has changed it since the page was shown."""
    form = await page.form()
    _require_keeper(page)
    uuid, wanted, change = key_uuid(key_id), _action(action), caller(page.request)

    async def work(session: AsyncSession) -> IssuedKey | None:
        key = await get_key(session, uuid, lock=True)
        if _version(key) != form.get("version"):
            raise KeyChanged
        if wanted == "revoke":
            await revoke_key(session, uuid, change)
            return None
        return await rotate_key(session, uuid, change, overlap=_overlap(form))

    try:
        issued = await in_transaction(page.resources.sessions, work)
    except PodiumError as error:
        return await _change_page(page, uuid, wanted, error)
    return go(PATH) if issued is None else _show_secret(page, issued)


def _require_keeper(page: Page) -> None:
    """Raise unless the visitor may see and change keys, which are for all agents."""
    page.require("admin")
    page.require_all_agents()


def _new(page: Page, form: dict[str, str], error: PodiumError | None = None) -> Template:
    return page.show(
        "key_new.html",
        status=error.status if error else 200,
        form=form,
        scopes=SCOPES,
        error=error,
        wrong=getattr(error, "field", None),
    )


def _show_secret(page: Page, issued: IssuedKey) -> Template:
    return page.show("key_secret.html", key=issued.key, secret=issued.secret)


async def _change_page(page: Page, key_id: UUID, action: str, error: PodiumError | None = None) -> Template:
    key = await in_transaction(page.resources.reads, lambda session: get_key(session, key_id))
    if key.revoked_at is not None and error is None:
        raise KeyNotFound("This key is revoked.")
    return page.show(
        "key_change.html",
        status=error.status if error else 200,
        key=key,
        action=action,
        preview=(_of_revoke if action == "revoke" else _of_rotate)(page, key),
        version=_version(key),
        overlaps=OVERLAPS,
        error=error,
    )


def _of_rotate(page: Page, key: Key) -> Preview:
    """Of giving a key a new secret."""
    now = datetime.now(UTC)
    effects = [
        "You get a new secret. It is shown once.",
        f"The current secret, which ends with {key.hint}, stays valid for the time that you choose.",
        "Programs that send it need the new one before then.",
        "Name, scopes, agents and limits stay as they are.",
    ]
    if key.previous_until is not None and key.previous_until > now:
        effects.append("The secret before that, which is still valid from an earlier rotation, ends at once.")
    effects += _own(page, key, "You are signed in with this key: sign in again with the new secret.")
    return Preview(f"Rotate {key.name}", "Rotate", effects)


def _of_revoke(page: Page, key: Key) -> Preview:
    """Of ending a key."""
    heartbeat = page.resources.settings.sse_heartbeat
    since = key.last_used_at
    used = "It was never used." if since is None else f"It was last used {ago(since, datetime.now(UTC))}."
    effects = [
        f"Every request with this key gets 401 from the next one on, on every API process. {used}",
        f"Event streams that it opened end within {lasting(heartbeat)}; calls that are under way go on.",
        "This cannot be undone. The name is free for a new key.",
    ]
    effects += _own(page, key, "You are signed in with this key: you will be signed out.")
    return Preview(f"Revoke {key.name}", "Revoke", effects, dangerous=True)


def _own(page: Page, key: Key, sentence: str) -> list[str]:
    return [sentence] if page.identity.key_id == key.id else []


def _action(text: str) -> str:
    if text not in {"rotate", "revoke"}:
        raise InvalidRequest("There is no such action: go back to the list of keys.")
    return text


def _version(key: Key) -> str:
    """Another one after each change of the key, so that a form that is sent twice changes nothing again."""
    return f"{key.hint} {key.rotated_at or key.created_at:%Y%m%d%H%M%S%f} {'revoked' if key.revoked_at else 'valid'}"


def _overlap(form: dict[str, str]) -> timedelta:
    chosen = form.get("overlap", "")
    if chosen not in OVERLAPS:
        raise InvalidRequest("Choose how long the current secret stays valid.", field="overlap")
    return timedelta(seconds=int(chosen))


def _request(form: dict[str, str]) -> NewKeyRequest:
    """The key that the form asks for. Raises `InvalidRequest`."""
    agents = form.get("agents", "").replace(",", " ").split()
    days = _number(form, "expires_days")
    wanted = {
        "name": form.get("name", "").strip(),
        "scopes": [scope for scope in SCOPES if form.get(f"scope-{scope}") == "yes"],
        "agents": agents or None,
        "owner": form.get("owner", "").strip() or None,
        "expires_in_seconds": None if days is None else days * 86_400.0,
        "calls_per_second": _number(form, "calls_per_second"),
        "calls_in_flight": _number(form, "calls_in_flight"),
    }
    if form.get("which") == "some" and not agents:
        raise InvalidRequest("Name the agents that the key is for, or choose all agents.", field="agents")
    if form.get("which") == "all" and agents:
        raise InvalidRequest("The key cannot be for all agents and for some: choose one.", field="agents")
    if not wanted["scopes"]:
        raise InvalidRequest("Choose what the key may do.", field="scopes")
    try:
        return NewKeyRequest.model_validate(wanted)
    except ValidationError as exc:
        problem = first_problem(exc)
        field = (problem.field or "").partition(".")[0]
        raise InvalidRequest(_MESSAGES.get(field, problem.message), field=field) from exc


_MESSAGES = {
    "name": "The name needs small letters, digits and hyphens, at most 63, such as ci-deploy.",
    "agents": "Agents are names, or prefixes that end with *, such as team-*; at most 100 of them.",
    "owner": "The owner may have at most 200 characters.",
    "expires_in_seconds": "The key can be valid for up to 3,653 days.",
    "calls_per_second": "Calls per second are a number above 0, up to a million.",
    "calls_in_flight": "Calls under way are a whole number above 0, up to a million.",
}


def _number(form: dict[str, str], name: str) -> float | int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII):
        raise InvalidRequest(f"“{text[:20]}” is no number.", field=name)
    found = float(text)
    return int(found) if found.is_integer() else found


ROUTES = [show_keys, ask_for_key, make_key, ask_for_change, confirm_change]
