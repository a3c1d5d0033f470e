"""How a call that has ended is counted: for its agent, for the gateway, or as no failure."""

from datetime import timedelta
from itertools import product
from time import perf_counter
from unittest.mock import patch
from uuid import UUID

from prometheus_client import CollectorRegistry

from api.gateway.telemetry import ANSWERED, BROKEN, DEFECT, LEFT, CallRecord, RpcMetrics
from services.agents.metrics import LabelledAgents
from services.calls.counts import CallCounts
from services.errors import DeploymentUnavailable, MessageTooLarge, PodiumError, TooManyCalls
from services.routing.routes import Route

ROUTE = Route(UUID(int=1), 7, "v1", "http://a", "/api", "jsonrpc", agent_name="bot")
OF_THE_AGENT, OF_THE_GATEWAY, NO_FAILURE = (1, 0), (0, 1), (0, 0)


def counted(outcome: str, status: int | None = None, refusal: PodiumError | None = None) -> tuple[int, int]:
    """End a call like this: failures of the agent, and of the gateway. The metrics must say the same."""
    registry, counts = CollectorRegistry(), CallCounts(timedelta(hours=2))
    record = CallRecord(
        metrics=RpcMetrics(registry, LabelledAgents(registry, 1)),
        counts=counts, kind="name", method="POST", request_id="r", trace_id="t", span_id="s",
        began=perf_counter(), actor="a",
    )  # fmt: skip
    record.routed(ROUTE)
    if status is not None:
        record.answer_began(status)
    if refusal is not None:
        # In the error style `jsonrpc`, the caller gets 200.
        record.refused(refusal, 200)
    else:
        record.outcome = outcome
    with patch.object(CallCounts, "record", autospec=True, side_effect=CallCounts.record) as recorded:
        record.end()
    blamed = recorded.call_args.kwargs
    last = int(blamed["agent_failed"]), int(blamed["gateway_failed"])
    found = [sample for family in registry.collect() for sample in family.samples]
    in_metrics = sum(sample.value for sample in found if sample.name == "podium_agent_failures_total")
    assert in_metrics == sum(last)
    return last


def test_who_is_to_blame() -> None:
    """G104: what a caller did wrong, and a caller that leaves, are nobody's failure, in counts and in metrics."""
    for status in (200, 404):
        assert counted(ANSWERED, status) == NO_FAILURE
    assert counted(ANSWERED, 503) == counted(BROKEN, 200) == counted(BROKEN, 500) == OF_THE_AGENT
    assert counted(DEFECT) == counted(DEFECT, 500) == OF_THE_GATEWAY
    assert counted(LEFT) == counted(LEFT, 200) == counted(LEFT, 500) == NO_FAILURE
    for by_caller in (TooManyCalls(), MessageTooLarge()):
        assert counted("", refusal=by_caller) == NO_FAILURE
    assert counted("", refusal=DeploymentUnavailable()) == OF_THE_GATEWAY


def test_a_call_is_at_most_one_failure() -> None:
    """The table refuses counts with more failures than calls, and with them those of all other agents."""
    refusals = (None, TooManyCalls(), MessageTooLarge(), DeploymentUnavailable(), PodiumError())
    for outcome, status, refusal in product((ANSWERED, LEFT, BROKEN, DEFECT), (None, 200, 404, 500), refusals):
        assert sum(counted(outcome, status, refusal)) <= 1
