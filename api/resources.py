"""The resources of one API process, injected into its route handlers."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from litestar.datastructures import State
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth.authenticator import Authenticator, open_authenticator
from api.auth.oidc.code_flow import CodeFlow
from api.auth.oidc.grants import IssuerConfig
from api.auth.oidc.tokens import Tokens
from api.batches import Batches, impatient, open_batches
from api.change_queues import ChangeQueues
from api.console.call_watch import CallWatch, open_call_watch
from api.console.watch import Watch, open_watch
from api.database_check import DatabaseCheck
from api.events.fanout import FanOut, open_fan_out
from api.gateway.gateway import Gateway, open_gateway
from api.http.lists import EMPTY
from services.agents.metrics import AgentChanges, LabelledAgents
from services.agents.shared_reads import AgentReads
from services.errors import Busy, PodiumError, Unavailable
from services.events.notifier import OutboxNotifier
from services.health.prober import Prober, open_prober
from services.promotion.together import Change, CutoversTogether, Made, Promoted, RolledBack, must_be_first
from services.registration.batch import Decided, Incoming, Terms, register_unlocked
from services.registration.ordered_ids import OrderedIds
from services.routing.conversations import ConversationTerms
from services.settings import Settings
from services.storage.database import Sessions, close_engine, in_transaction, make_engine
from services.storage.driver import Row
from services.storage.shared_lists import Question, SharedLists
from services.webhooks.sender import WebhookSender, open_webhook_sender

T = TypeVar("T")

APPLICATION_NAME = "podium-api"


@dataclass(frozen=True, slots=True)
class Resources:
    """Open from start to stop of the process. `reads` runs each statement in autocommit mode.

    `agents` and `lists` read together what several requests ask for at the same time. A commit in `sessions` that wrote
    events wakes the relay.
    """

    settings: Settings
    sessions: Sessions
    reads: Sessions
    callers: Authenticator
    agents: AgentReads
    lists: SharedLists
    changes: ChangeQueues
    registrations: Batches[Incoming, Decided]
    cutovers: Batches[Change, Made | PodiumError]
    message_ids: OrderedIds
    database: DatabaseCheck
    gateway: Gateway
    prober: Prober
    events: FanOut
    watch: Watch
    call_watch: CallWatch
    sign_ins: CodeFlow
    agents_measured: LabelledAgents
    agent_changes: AgentChanges
    webhooks: WebhookSender

    @property
    def terms(self) -> ConversationTerms:
        """How long conversations stay open, where their agent does not say."""
        return ConversationTerms.of(self.settings)

    async def list_of(self, agent_id: UUID, question: Question, render: Callable[[Sequence[Row]], bytes]) -> bytes:
        """A list of what belongs to an agent, as JSON. Raises `AgentNotFound`, `Unavailable`."""
        answer: bytes = await self.lists.read(question, render)
        if answer == EMPTY:
            await self.agents.by_id(agent_id)
        return answer

    async def change(self, agent: UUID | str, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Like `in_transaction`, for a change of one agent, given by id or name, when it is its turn.

        The wait for the turn and the transaction share the time that a request waits for the database.
        """
        async with self.changes.turn(agent) as turn:
            try:
                return await in_transaction(self.sessions, work, seconds=turn.seconds_left)
            except Unavailable as exc:
                if turn.waited_seconds > turn.seconds_left:
                    raise Busy from exc
                raise


@asynccontextmanager
async def open_resources(
    settings: Settings,
    registry: CollectorRegistry,
    registry_of_agents: CollectorRegistry,
    issuers: Sequence[IssuerConfig] = (),
) -> AsyncGenerator[Resources, None]:
    """The resources, closed on exit. They connect to nothing before the first request."""
    engine = make_engine(settings, application_name=APPLICATION_NAME)
    events_engine = make_engine(settings, application_name=APPLICATION_NAME, pool_size=1)
    check_engine = make_engine(settings, application_name=APPLICATION_NAME, pool_size=1)
    timeout = settings.database_timeout
    labelled = LabelledAgents(registry_of_agents, settings.metrics_agents)
    changes = AgentChanges(labelled)
    reads = Sessions(engine.execution_options(isolation_level="AUTOCOMMIT"), timeout=timeout)
    try:
        async with (
            OutboxNotifier(engine) as notifier,
            open_authenticator(
                settings, reads, Tokens(issuers), registry, application_name=APPLICATION_NAME
            ) as callers,
            open_gateway(settings, reads, registry, agents=labelled, application_name=APPLICATION_NAME) as gateway,
            open_fan_out(events_engine) as events,
            open_watch(reads, events) as watch,
            open_call_watch(reads) as call_watch,
            open_prober(settings, (settings.host, settings.port)) as prober,
            open_webhook_sender(settings, (settings.host, settings.port)) as webhooks,
            AgentReads(settings, application_name=APPLICATION_NAME) as agents,
            SharedLists(settings, application_name=APPLICATION_NAME) as lists,
            open_batches(
                settings,
                partial(register_unlocked, terms=Terms.of(settings)),
                on_events=notifier.notify,
                on_made=changes.registered,
                application_name=APPLICATION_NAME,
            ) as registrations,
            _open_cutovers(settings, notifier, changes) as cutovers,
        ):
            sessions = Sessions(engine, timeout=timeout, on_events=notifier.notify)
            yield Resources(
                settings=settings,
                sessions=sessions,
                reads=reads,
                callers=callers,
                agents=agents,
                lists=lists,
                changes=ChangeQueues(settings),
                registrations=registrations,
                cutovers=cutovers,
                message_ids=OrderedIds(),
                database=DatabaseCheck(check_engine),
                gateway=gateway,
                prober=prober,
                events=events,
                watch=watch,
                call_watch=call_watch,
                sign_ins=CodeFlow(callers.tokens),
                agents_measured=labelled,
                agent_changes=changes,
                webhooks=webhooks,
            )
    finally:
        await asyncio.gather(close_engine(engine), close_engine(check_engine))


@asynccontextmanager
async def _open_cutovers(
    settings: Settings, notifier: OutboxNotifier, changes: AgentChanges
) -> AsyncGenerator[Batches[Change, Made | PodiumError], None]:
    together = CutoversTogether(impatient(settings), application_name=APPLICATION_NAME, on_events=notifier.notify)

    def count(made: Sequence[Made | PodiumError | None]) -> None:
        changes.changed([each.state for each in made if isinstance(each, Promoted | RolledBack)])

    batches: Batches[Change, Made | PodiumError] = Batches(
        settings, together.make, must_be_first=must_be_first, on_made=count
    )
    try:
        yield batches
    finally:
        await batches.close()
        together.close()


def provide_resources(state: State) -> Resources:
    """The resources of this process, for handlers with a `resources` parameter."""
    resources = state.resources
    assert isinstance(resources, Resources)
    return resources


# The annotation of a handler's `resources` parameter.
Injected = NamedDependency[Resources]
