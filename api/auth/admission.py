"""Whether a caller may reach an agent, decided when the route of its call is read.

A check of its own would be another read for each call.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.domain.identity import Identity
from services.errors import AgentNotFound


@dataclass(slots=True)
class Admission:
    """A caller of the gateway. `identify` finds its identity anew, and raises if it may not call any more.

    `recognizes` says whether a bearer token is a credential for Podium, which no agent may get.
    """

    identity: Identity
    identify: Callable[[], Awaitable[Identity]]
    recognizes: Callable[[str], bool]

    async def check(self, agent_name: str | None, keys_version: int | None) -> None:
        """Raise `AgentNotFound` unless the caller sees this agent, and `Unauthorized` if its key is not valid any more.

        `keys_version` is the version of the keys in the snapshot that the route was read in.
        """
        if self.identity.keys_version not in {None, keys_version}:
            self.identity = await self.identify()
        if not self.identity.sees(agent_name):
            raise AgentNotFound

    @property
    def is_open(self) -> bool:
        """Whether nothing is left to check."""
        return self.identity.keys_version is None and self.identity.agents is None
