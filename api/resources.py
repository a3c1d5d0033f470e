"""What one API process holds open, and hands to its handlers."""

from dataclasses import dataclass

import aiohttp
from litestar.datastructures import State

from services.database import Sessions
from services.settings import Settings
from services.wake import Waker

UNAUTHENTICATED = "local"
AUTHENTICATED = "api-key"


@dataclass(frozen=True, slots=True)
class Resources:
    """Open from start to stop of the process; `reads` sends single statements without a transaction around them."""

    settings: Settings
    sessions: Sessions
    reads: Sessions
    waker: Waker
    http: aiohttp.ClientSession

    @property
    def actor(self) -> str:
        """Who every caller is, until keys have owners."""
        return AUTHENTICATED if self.settings.api_key.get_secret_value() else UNAUTHENTICATED


def provide_resources(state: State) -> Resources:
    """The resources of this process, for handlers that ask for `resources`."""
    resources = state.resources
    assert isinstance(resources, Resources)
    return resources
