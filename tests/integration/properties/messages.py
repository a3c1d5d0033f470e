"""What can be said of agents: messages, and the scene in which they and all other operations find whom they mean."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.announcement import Rejected
from services.registration.batch import Incoming, register_batch
from tests.support.reference_model.model import Model
from tests.support.reference_model.state import Message, Moment


@dataclass(frozen=True)
class Call:
    """One operation on what is there."""

    sentence: str
    by_the_rules: Callable[[Model, Moment], str]
    on_the_database: Callable[[AsyncSession], Awaitable[str]]


@dataclass(frozen=True)
class Letter:
    """A message, as the model and as Podium reads it."""

    message: Message
    incoming: Incoming
    sentence: str


class Scene(Protocol):
    """Where operations happen: it knows who is there now, and keeps every message that was written."""

    letters: list[Letter]

    def label(self, who: str) -> str:
        """The agent of this name, or `old a`: the one that had the name before."""

    def deployment(self, version: str) -> str:
        """The id of a version: `a-v1` is `a2-v1` while the second agent of the name lives, and `old a-v1` `a1-v1`."""

    def agent_id(self, label: str) -> UUID:
        """The id of this agent; of nobody, one that no agent has."""

    def generation(self, label: str, which: str | None) -> int | None:
        """The agent's `current` generation, or the one before it (`outdated`)."""

    def write(self, draft: "Announce") -> Letter:
        """A new message."""


class Spoken:
    """Prints as the call that makes it, without what is left out."""

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
class Announce(Spoken):
    """A message that somebody writes; without a version it is a legacy agent's."""

    agent: str
    version: str | None = None
    published: str = "now"  # or `1 step ago`, `an hour ago`, `20 s ahead`, `an hour ahead`
    way: str = "queue"
    url: str = "http://one"
    image: str | None = None
    description: str | None = None
    rpc_path: str | None = None
    fact: str | None = None
    agent_id: str | None = None  # whose id it gives as its own

    def letter(self, scene: Scene) -> Letter:
        """The message."""
        return scene.write(self)


@dataclass(frozen=True, repr=False)
class Again(Spoken):
    """A message that was written before, delivered (perhaps once more); 0 is the last one written."""

    back: int

    def letter(self, scene: Scene) -> Letter | None:
        """The message; None if there was none."""
        return scene.letters[-1 - self.back % len(scene.letters)] if scene.letters else None


@dataclass(frozen=True, repr=False)
class Register(Spoken):
    """Messages that are decided in one transaction."""

    batch: Sequence[Announce | Again]

    def bind(self, scene: Scene) -> Call:
        """The messages, written now or before."""
        letters = [letter for each in self.batch if (letter := each.letter(scene)) is not None]
        messages, batch = [each.message for each in letters], [each.incoming for each in letters]

        async def on_the_database(session: AsyncSession) -> str:
            outcomes = [each.outcome for each in await register_batch(session, batch)]
            return ", ".join(
                f"Rejected ({type(each.error).__name__})" if isinstance(each, Rejected) else type(each).__name__
                for each in outcomes
            )

        sentence = "; ".join(each.sentence for each in letters) or "nothing arrives"
        return Call(sentence, lambda model, now: model.register(messages, now), on_the_database)
