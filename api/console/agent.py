"""The page of one agent: what serves, all versions, and the timeline of what served."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from litestar import get
from litestar.params import FromPath, QueryParameter
from litestar.response import Template
from sqlalchemy.ext.asyncio import AsyncSession

from api.console.page import OnPage
from api.console.timeline import CHANGES, RANGES, fitting_range, timeline
from api.console.words import fact
from api.http.parameters import agent_uuid
from services.agents.overview import VersionCounts, version_counts
from services.agents.queries import AgentView, DeploymentView, get_agent, get_deployment, list_deployments
from services.calls.recent import RecentCalls, recent_calls
from services.errors import InvalidRequest
from services.promotion.history import NO_GENERATION, Change, history
from services.routing.conversations import ConversationTerms
from services.storage.database import in_transaction
from services.storage.pages import Page as Rows

VERSIONS = 25
LEDGER = 8
AUTHORS = ("author", "commit_author", "author_name", "author_email")
COMMITS = ("commit", "commit_hash", "commit_sha", "sha", "git_commit", "revision")
BRANCHES = ("branch", "branch_name", "git_branch", "ref")


@dataclass(frozen=True, slots=True)
class Version:
    """A version with what its metadata says about its origin."""

    view: DeploymentView
    counts: VersionCounts
    author: str | None
    commit: str | None
    branch: str | None

    @classmethod
    def of(cls, view: DeploymentView, counts: VersionCounts) -> "Version":
        """The version of a deployment."""
        metadata = view.deployment.registration_metadata
        return cls(view, counts, fact(metadata, *AUTHORS), fact(metadata, *COMMITS), fact(metadata, *BRANCHES))

    @property
    def pods(self) -> tuple[int, int]:
        """How many of its pods are Ready, and how many there are."""
        deployment = self.view.deployment
        if deployment.has_instances:
            return self.counts.instances_ready, self.counts.instances
        return int(deployment.status == "Ready"), int(deployment.acp_url is not None)


@dataclass(frozen=True, slots=True)
class AgentPage:
    """What is read for an agent's page."""

    agent: AgentView
    production: Version | None
    versions: list[Version]
    has_more: bool
    changes: list[Change]
    since: datetime | None
    """Since when it is served by what serves it now."""


async def read_agent_page(
    session: AsyncSession, agent_id: UUID, terms: ConversationTerms, number: int = 1, before: int | None = None
) -> AgentPage:
    """The agent with a page of its versions, newest first, and the changes before a generation, or the newest ones.

    Raises `AgentNotFound`.
    """
    view = await get_agent(session, agent_id)
    found = await list_deployments(session, agent_id, Rows(limit=VERSIONS, number=number), terms)
    pointer = view.agent.production_deployment_id
    production = next((each for each in found if each.deployment.id == pointer), None)
    if production is None and pointer is not None:
        production = await get_deployment(session, agent_id, pointer, terms)
    everything = [*found, production] if production else found
    counts = await version_counts(session, [each.deployment.id for each in everything], terms)
    none = VersionCounts(0, 0, 0)
    versions = [Version.of(each, counts.get(each.deployment.id, none)) for each in found]
    serving = Version.of(production, counts.get(production.deployment.id, none)) if production else None
    changes = await history(session, agent_id, limit=CHANGES, before=before)
    newest = changes if before is None else await history(session, agent_id, limit=1)
    since = newest[0].promotion.at if newest else None
    return AgentPage(view, serving, versions, len(found) == VERSIONS, changes, since)


@get("/console/agents/{agent_id:str}", include_in_schema=False)
async def show_agent(
    agent_id: FromPath[str],
    page: OnPage,
    zoom: Annotated[str | None, QueryParameter(max_length=10)] = None,
    versions: Annotated[int, QueryParameter(ge=1, le=1_000_000)] = 1,
    before: Annotated[int | None, QueryParameter(ge=1, le=NO_GENERATION)] = None,
) -> Template:
    """One agent, deleted or not."""
    uuid = agent_uuid(agent_id)
    if zoom is not None and zoom not in RANGES:
        raise InvalidRequest(f"zoom must be one of {', '.join(RANGES)}.", field="zoom")
    resources = page.resources

    async def work(session: AsyncSession) -> tuple[AgentPage, RecentCalls]:
        return await read_agent_page(session, uuid, resources.terms, versions, before), await recent_calls(
            session, [uuid]
        )

    found, recent = await in_transaction(resources.reads, work)
    page.require_agent(found.agent.agent.name)
    shown = found.changes[:LEDGER]
    now = datetime.now(UTC)
    ends = now if before is None or not shown else (shown[0].until or now)
    if zoom is None:
        zoom = fitting_range(found.changes, ends)
    return page.show(
        "agent.html",
        agent=found.agent.agent,
        acp_url=found.agent.acp_url,
        production=found.production,
        versions=found.versions,
        number=versions,
        has_more=found.has_more,
        changes=shown,
        since=found.since,
        older=shown[-1].promotion.generation if len(found.changes) > LEDGER else None,
        before=before,
        ends=None if before is None else ends,
        timeline=timeline(found.changes, ends, RANGES[zoom]),
        hour=recent.of_agent(uuid),
        calls={each.view.deployment.id: recent.of_version(uuid, each.view.deployment.id) for each in found.versions},
        calls_complete=recent.is_complete,
        zoom=zoom,
        zooms=list(RANGES),
        base=f"/console/agents/{uuid}",
        own_url=f"/console/agents/{uuid}?zoom={zoom}&versions={versions}" + (f"&before={before}" if before else ""),
        cursor=str(found.agent.agent.event_seq),
    )


ROUTES = [show_agent]
