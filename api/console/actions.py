"""Changes of agents: each has a page that says what will happen, and a form that sends the generation of that page.

A form from an earlier generation changes nothing: the page is shown again, with what has changed since.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from litestar import get, post
from litestar.params import FromPath, QueryParameter
from litestar.response import Template
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from api.console import previews
from api.console.agent import AgentPage, Version, read_agent_page
from api.console.page import OnPage, Page, go
from api.http.parameters import agent_uuid, caller, deployment_key
from api.http.requests import RollbackRequest, first_problem
from api.routes.rollback import rolled_back
from services.agents.commands import AgentChange, change_agent, delete_agent, delete_deployment
from services.agents.overview import VersionCounts, version_counts
from services.agents.queries import get_deployment
from services.domain.identity import Scope
from services.domain.state import AgentSnapshot
from services.errors import DeploymentNotFound, InvalidRequest, PodiumError
from services.promotion.promote import promote
from services.promotion.rollback_targets import Target, rollback_targets
from services.storage.database import in_transaction

Action = Literal["promote", "rollback", "delete", "pause", "resume", "delete-agent"]
NEEDED: dict[Action, Scope] = {
    "promote": "promote",
    "rollback": "promote",
    "delete": "promote",
    "pause": "promote",
    "resume": "promote",
    "delete-agent": "admin",
}
PATH = "/console/agents/{agent_id:str}/{action:str}"
TARGETS = 10
LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class _Asked:
    """The action that a visitor asks for."""

    page: Page
    agent_id: UUID
    action: Action
    version: str | None


class _Read:
    """What the page of an action shows."""

    def __init__(self, found: AgentPage, version: Version | None, targets: list[Target]) -> None:
        self.found = found
        self.agent = found.agent.agent
        self.version = version
        self.targets = targets

    @property
    def serves(self) -> str:
        """What serves the agent, in words."""
        if self.agent.production_deployment_id is not None:
            return self.agent.production_deployment_id
        return "its legacy address" if self.found.agent.acp_url else "nothing"

    def preview(self, action: Action) -> previews.Preview:
        """What the action will do."""
        if action == "rollback":
            return previews.of_rollback(self.agent, self.serves, self.targets)
        if action == "pause":
            return previews.of_pause(self.agent)
        if action == "resume":
            return previews.of_resume(self.agent)
        if action == "delete-agent":
            return previews.of_delete_agent(self.agent, self.serves)
        if self.version is None:
            raise DeploymentNotFound
        if action == "delete":
            return previews.of_delete(self.version)
        return previews.of_promote(self.agent, self.serves, self.found.production, self.version)


@get(PATH, include_in_schema=False)
async def ask(
    agent_id: FromPath[str],
    action: FromPath[str],
    page: OnPage,
    version: Annotated[str | None, QueryParameter()] = None,
    seen: Annotated[int | None, QueryParameter(ge=0)] = None,
) -> Template:
    """What the action will do, and the form that confirms it."""
    wanted = _action(action)
    page.require(NEEDED[wanted])
    return await _show(_Asked(page, agent_uuid(agent_id), wanted, version), seen=seen)


@post(PATH, include_in_schema=False, status_code=200)
async def confirm(
    agent_id: FromPath[str],
    action: FromPath[str],
    page: OnPage,
    version: Annotated[str | None, QueryParameter()] = None,
) -> Any:  # noqa: ANN401 - the page again, or the way to the agent's
    """Make the change, if the agent is still at the generation that the page has shown."""
    asked = _Asked(page, agent_uuid(agent_id), _action(action), version)
    form = await page.form()
    page.require(NEEDED[asked.action])
    try:
        seen = _generation(form)
        await _require_visible(asked)
        await _change(asked, form, seen)
    except PodiumError as error:
        return await _show(asked, seen=_number(form.get("generation")), form=form, error=error)
    return go(f"/console/agents/{asked.agent_id}")


async def _require_visible(asked: _Asked) -> None:
    view = await asked.page.resources.agents.by_id(asked.agent_id)
    asked.page.require_agent(view.agent.name)


async def _change(asked: _Asked, form: dict[str, str], seen: int) -> None:
    """Raises the reason if the change is refused."""
    agent_id, action, version = asked.agent_id, asked.action, asked.version
    resources = asked.page.resources
    try:
        body = RollbackRequest(
            to=form.get("to") or None, reason=form.get("reason", "").strip() or None, force=form.get("force") == "yes"
        )
    except ValidationError as exc:
        raise first_problem(exc) from exc
    change = replace(caller(asked.page.request, body.reason), if_generation=seen)
    if action == "rollback":
        await rolled_back(resources, agent_id, change, body)
        return

    promoted: list[AgentSnapshot] = []

    async def work(session: AsyncSession) -> None:
        if action == "promote":
            promoted[:] = [await promote(session, agent_id, deployment_key(version or ""), change)]
        elif action == "delete":
            key = deployment_key(version or "")
            await delete_deployment(session, agent_id, key, change, terms=resources.terms, force=body.force)
        elif action == "delete-agent":
            await _require_name(session, asked, form)
            await delete_agent(session, agent_id, change)
        else:
            pause = AgentChange(auto_promote_paused=action == "pause")
            await change_agent(session, agent_id, pause, change)

    await resources.change(agent_id, work)
    resources.agent_changes.changed(promoted)


async def _require_name(session: AsyncSession, asked: _Asked, form: dict[str, str]) -> None:
    found = await read_agent_page(session, asked.agent_id, asked.page.resources.terms)
    if form.get("name", "").strip() != found.agent.agent.name:
        raise InvalidRequest("Type the agent's name to confirm.", field="name")


async def _show(
    asked: _Asked,
    *,
    seen: int | None = None,
    form: dict[str, str] | None = None,
    error: PodiumError | None = None,
) -> Template:
    """The page of the action, for the generation now; `seen` is the one that an earlier page or a refused form had."""
    page, action, version = asked.page, asked.action, asked.version
    read = await in_transaction(page.resources.reads, lambda session: _read(session, asked))
    generation = read.agent.generation
    since = [each.promotion for each in read.found.changes if seen is not None and each.promotion.generation > seen]
    base = f"/console/agents/{asked.agent_id}"
    query = f"?version={version}&" if version else "?"
    return page.show(
        "action.html",
        status=error.status if error else 200,
        agent=read.agent,
        base=base,
        action=action,
        version=read.version.view.deployment if read.version else None,
        preview=read.preview(action),
        changes=since,
        is_stale=bool(since) and error is None,
        was_stale=bool(since) and error is not None,
        error=None if error is None or since else error,
        form=form or {},
        generation=generation,
        post_url=f"{base}/{action}{query}".rstrip("?&"),
        own_url=f"{base}/{action}{query}seen={generation if seen is None or error else seen}",
        cursor=str(read.agent.event_seq),
    )


async def _read(session: AsyncSession, asked: _Asked) -> _Read:
    agent_id, terms = asked.agent_id, asked.page.resources.terms
    found = await read_agent_page(session, agent_id, terms)
    asked.page.require_agent(found.agent.agent.name)
    shown = None
    if asked.version is not None:
        key = deployment_key(asked.version)
        view = await get_deployment(session, agent_id, key, terms)
        shown = Version.of(view, (await version_counts(session, [key], terms)).get(key, VersionCounts(0, 0, 0)))
    targets = await rollback_targets(session, agent_id, limit=TARGETS) if asked.action == "rollback" else []
    return _Read(found, shown, targets)


def _action(text: str) -> Action:
    found: Action | None = next((each for each in get_args(Action) if each == text), None)
    if found is None:
        raise InvalidRequest("There is no such action: go back to the agent's page.")
    return found


def _generation(form: dict[str, str]) -> int:
    number = _number(form.get("generation"))
    if number is None:
        raise InvalidRequest("The form has no generation: open the page again.")
    return number


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None  # noqa: PLR2004 - the digits of a bigint


ROUTES = [ask, confirm]
