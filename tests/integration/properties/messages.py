"""Messages as test data, and the scene that resolves the names in operations to ids."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.announcement import Rejected
from services.promotion.together import Promote, RollBack
from services.registration.batch import Incoming, register_batch
from tests.support.reference_model.model import Model
from tests.support.reference_model.state import Message, Moment


@dataclass(frozen=True)
class Call:
    """One operation, bound to the ids that exist now."""

    sentence: str
    on_the_model: Callable[[Model, Moment], str]
    on_the_database: Callable[[AsyncSession], Awaitable[str]]
    cutover: Promote | RollBack | None = None
    """The promote or rollback that this is, if it is to be made without the agent's lock where that is possible."""


@dataclass(frozen=True)
class WrittenMessage:
    """A message, in the form of the model and in the form of Podium."""

    message: Message
    incoming: Incoming
    sentence: str


class Scene(Protocol):
    """The agents that exist now, and all messages written so far."""

    written: list[WrittenMessage]

    def label(self, name: str) -> str:
        """The label of the agent with this name; `old a` is the agent that had the name before."""

    def deployment(self, version: str) -> str:
        """The id of a version. While a second agent `a` exists, `a-v1` is `a2-v1` and `old a-v1` is `a1-v1`."""

    def agent_id(self, label: str) -> UUID:
        """The id of this agent; an unused id if there is no such agent."""

    def generation(self, label: str, which: str | None) -> int | None:
        """The agent's `current` generation, or the one before it (`outdated`)."""

    def write(self, draft: "Announce") -> WrittenMessage:
        """A new message."""


class ReprAsCall:
    """Its repr is the call that creates it, without default values."""

    def __repr__(self) -> str:
        said = [(each, getattr(self, each.name)) for each in fields(self)]  # type: ignore[arg-type]
        parts = [
            repr(value) if each.default is MISSING else f"{each.name}={value!r}"
            for each, value in said
            if value != each.default
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # noqa: FBT001 - Hypothesis' printer calls it
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Announce(ReprAsCall):
    """An announcement; without a version it is one of a legacy agent."""

    agent: str
    version: str | None = None
    published: str = "now"  # or `1 step ago`, `an hour ago`, `20 s ahead`, `an hour ahead`
    way: str = "queue"
    url: str = "http://one"
    image: str | None = None
    description: str | None = None
    rpc_path: str | None = None
    fact: str | None = None
    agent_id: str | None = None  # the agent whose id it contains

    def written_message(self, scene: Scene) -> WrittenMessage:
        """The message."""
        return scene.write(self)


@dataclass(frozen=True, repr=False)
class Redelivered(ReprAsCall):
    """A message that was written before, delivered again; 0 is the newest one."""

    back: int

    def written_message(self, scene: Scene) -> WrittenMessage | None:
        """The message; None if none was written yet."""
        return scene.written[-1 - self.back % len(scene.written)] if scene.written else None


@dataclass(frozen=True, repr=False)
class Register(ReprAsCall):
    """Messages that are decided in one transaction."""

    batch: Sequence[Announce | Redelivered]

    def bind(self, scene: Scene) -> Call:
        """The call, with messages written now or before."""
        written = [
            written_message for each in self.batch if (written_message := each.written_message(scene)) is not None
        ]
        messages, batch = [each.message for each in written], [each.incoming for each in written]

        async def on_the_database(session: AsyncSession) -> str:
            outcomes = [each.outcome for each in await register_batch(session, batch)]
            return ", ".join(
                f"Rejected ({type(each.error).__name__})" if isinstance(each, Rejected) else type(each).__name__
                for each in outcomes
            )

        sentence = "; ".join(each.sentence for each in written) or "nothing arrives"
        return Call(sentence, lambda model, now: model.register(messages, now), on_the_database)
