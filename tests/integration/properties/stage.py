"""The stage of a run: a real database, the model, and the messages written so far."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches import Batches
from contracts.messages import RegisterBuildRequest
from services.domain.announcement import Announcement
from services.errors import PodiumError
from services.promotion.rollback import Plan
from services.promotion.together import Change, Made
from services.registration.batch import Incoming
from services.storage.database import Sessions, in_transaction
from tests.integration.properties.interleaving import Interleaving
from tests.integration.properties.messages import Announce, Call, WrittenMessage
from tests.integration.properties.operations import Operation
from tests.integration.properties.orders import Done, explain
from tests.support.databases import empty
from tests.support.factories import a_registration, incoming
from tests.support.invariants import assert_invariants
from tests.support.reference_model.model import Model
from tests.support.reference_model.picture import Seen, of_database
from tests.support.reference_model.state import Message, Moment

NO_AGENT = UUID(int=0)
# How published times are written: steps ago, and seconds after that step began. In the model a step is 1 long, and a
# second is so long that no run catches up with it.
PUBLISHED = {
    "now": (0, 0),
    "1 step ago": (1, 0),
    "3 steps ago": (3, 0),
    "an hour ago": (0, -3600),
    "20 s ahead": (0, 20),
    "an hour ahead": (0, 3600),
}
SECOND: Moment = 70  # the 30 seconds of G4 are `announcing.TOLERANCE`
WITHIN: Moment = 0.5  # the operations of a step come after its messages


class Stage:
    """One run at a time."""

    def __init__(self, engine: AsyncEngine, cutovers: Batches[Change, Made | PodiumError]) -> None:
        self._engine = engine
        self._cutovers = cutovers
        self.made_together: Counter[str] = Counter()
        self._sessions = Sessions(engine)
        self._interleaving = Interleaving(engine)

    async def begin(self) -> None:
        """Start a new run with an empty database."""
        await empty(self._engine)
        self.model = Model()
        self.written: list[WrittenMessage] = []
        self.log: list[str] = []
        self._began: list[datetime] = []
        self._agent_ids: dict[str, UUID] = {}
        self._store(await in_transaction(self._sessions, of_database))

    async def run_step(self, operations: Sequence[Operation], turns: Sequence[int] | None = None) -> None:
        """Run the operations of the next step concurrently; raises if the model and the database differ."""
        step = len(self._began)
        done = await self._perform([operation.bind(self) for operation in operations], turns)
        self.log += [f"{step}. {each}" for each in done]
        seen, _ = await asyncio.gather(
            in_transaction(self._sessions, of_database), in_transaction(self._sessions, assert_invariants)
        )
        self.model = explain(self.model, done, self._now + WITHIN, seen.picture)
        self._store(seen)

    def label(self, name: str) -> str:
        """The label of the newest agent of this name, or with `old ` of the one before it."""
        lives = self.model.of_name(name.removeprefix("old "))
        newest = lives[:-1] if name.startswith("old ") else lives
        return newest[-1].label if newest else f"no {name}"

    def deployment(self, version: str) -> str:
        """The id of a version: each agent of a name has its own versions, counted from 1."""
        name, _, number = version.removeprefix("old ").partition("-")
        lives = self.model.of_name(name)
        living = len(lives) + (not lives or lives[-1].deleted_at is not None)
        return f"{name}{living - version.startswith('old ')}-{number}"

    def agent_id(self, label: str) -> UUID:
        """The id of this agent; an unused id if there is no such agent."""
        return self._agent_ids.get(label, NO_AGENT)

    def generation(self, label: str, which: str | None) -> int | None:
        """The agent's `current` generation, or the one before it."""
        life = self.model.lives.get(label)
        if which is None or life is None:
            return None
        return life.generation if which == "current" else life.generation - 1

    def write(self, draft: Announce) -> WrittenMessage:
        """A new message."""
        # In pairs, the second id before the first: so of equal times, the newer message does not always win.
        message_id = UUID(int=(len(self.written) + 2) ^ 1)
        steps, seconds = PUBLISHED[draft.published]
        then = max(0, len(self._began) - 1 - steps)
        at = self._began[then] + timedelta(seconds=seconds)
        agent_id = self.label(draft.agent_id) if draft.agent_id else None
        deployment = self.deployment(draft.version) if draft.version else None
        message = Message(
            id=message_id,
            agent=draft.agent,
            deployment=deployment,
            published=then + seconds * SECOND if draft.way == "queue" else None,
            way=draft.way,
            url=draft.url,
            image=draft.image,
            description=draft.description,
            rpc_path=draft.rpc_path,
            fact=draft.fact,
            agent_id=agent_id,
        )
        sentence = f"message {message_id.int}: {_sentence(message, draft.published)}"
        written_message = WrittenMessage(message, self._as_sent(message, at), sentence)
        self.written.append(written_message)
        return written_message

    def _as_sent(self, message: Message, at: datetime) -> Incoming:
        metadata = {"fact": message.fact} if message.fact else {}
        said = {"description": message.description, "docker_image": message.image}
        if message.way == "build":
            build = RegisterBuildRequest.model_validate(
                {"name": message.agent, "registration_metadata": metadata or None, **said}
            )
            return Incoming(Announcement(build, message.id, None))
        said |= {
            "deployment_id": message.deployment,
            "acp_url": message.url,
            "rpc_path": message.rpc_path,
            "agent_id": str(self.agent_id(message.agent_id)) if message.agent_id else None,
        }
        given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        given["registration_metadata"] = metadata
        if message.way == "HTTP":
            return Incoming(Announcement(a_registration(message.agent, **given), message.id, None))
        return incoming(message.agent, message_id=str(message.id), registered_at=at.isoformat(), **given)

    @property
    def _now(self) -> Moment:
        return float(len(self._began) - 1)

    async def _perform(self, calls: Sequence[Call], turns: Sequence[int] | None) -> list[Done]:
        outcomes = await self._interleaving.run([self._outcome_of(call) for call in calls], turns)
        return [Done(call, outcome) for call, outcome in zip(calls, outcomes, strict=True)]

    async def _outcome_of(self, call: Call) -> str:
        try:
            made = await self._cutovers.make(call.cutover.agent_id, call.cutover) if call.cutover else None
            if made is None or isinstance(made, Plan):
                return await in_transaction(self._sessions, call.on_the_database)
            self.made_together[type(call.cutover).__name__] += 1
            return _refused(made) if isinstance(made, PodiumError) else f"generation {made.state.agent.generation}"
        except PodiumError as error:
            return _refused(error)
        except Exception as error:  # noqa: BLE001 - any exception is a result that the model does not allow
            return f"broken: {getattr(error, 'orig', error)!r}"

    def _store(self, seen: Seen) -> None:
        self._began.append(seen.clock)
        self._agent_ids |= seen.agent_ids


def _refused(error: PodiumError) -> str:
    return f"refused: {type(error).__name__}"


def _sentence(message: Message, published: str) -> str:
    who = message.deployment or ("a build" if message.way == "build" else "a legacy pod")
    said = [
        f"{name}={getattr(message, name)}"
        for name in ("url", "image", "description", "rpc_path", "fact", "agent_id")
        if getattr(message, name) is not None
    ]
    when = f"published {published}" if message.way == "queue" else f"by {message.way}"
    return f"{who} announces itself for {message.agent} ({', '.join([when, *said])})"
