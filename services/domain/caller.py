"""The author of a change, as the ledger and the audit log name it."""

from dataclasses import dataclass

from msgspec.structs import replace

from services.domain.state import AgentSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The author of a change and its reason. `if_generation` is the generation that it requires; None allows any."""

    actor: str
    reason: str | None = None
    if_generation: int | None = None
    traceparent: str | None = None
    request_id: str | None = None
    on_behalf_of: str | None = None

    def decides(self, state: AgentSnapshot) -> AgentSnapshot:
        """The state to decide on for this caller: what the decision adds names its request."""
        return replace(state, traceparent=self.traceparent, request_id=self.request_id, on_behalf_of=self.on_behalf_of)
