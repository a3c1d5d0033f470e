"""Metrics per agent: how many series there are, and whose."""

from dataclasses import dataclass

from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.gateway.protocols import A2A_VERSIONS, MCP_METHODS, NAMES_MAX, BoundedNames, protocol_of
from services.agents.metrics import AGENT_ERROR, OTHER, AgentCalls, AgentChanges, LabelledAgents
from services.domain.announcement import Outcome, Registered, Rejected
from services.domain.state import AgentSnapshot
from services.errors import Malformed
from tests.support.factories import a_state, an_agent, in_production

REASONS = (
    "agent-unreachable",
    "connect-timeout",
    "first-byte-timeout",
    "deployment-unavailable",
    "broken",
    "request-buffer-full",
)


@dataclass(frozen=True)
class Decision:
    """One decided announcement."""

    outcome: Outcome
    state: AgentSnapshot | None


class Metrics:
    """The metrics of one process, as Prometheus reads them."""

    def __init__(self, most: int = 200) -> None:
        self.registry = CollectorRegistry()
        self.agents = LabelledAgents(self.registry, most)
        self.calls = AgentCalls(self.agents)
        self.changes = AgentChanges(self.agents)

    def call(self, name: str, failure: str | None = None) -> None:
        """A call of this agent."""
        agent = self.calls.of(name)
        assert agent is not None
        agent.in_flight.inc()
        agent.in_flight.dec()
        agent.ended(failure, 0.05)

    def scrape(self) -> bytes:
        """What Prometheus gets."""
        return generate_latest(self.registry)

    def samples(self) -> dict[tuple[str, ...], float]:
        """Each sample by its name and its labels."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.scrape().decode())
            for sample in family.samples
        }

    def labels(self) -> set[str]:
        """Every value of the label `agent`."""
        return {name for _, name, *_ in self.samples()}


def test_ten_thousand_agents_have_a_bounded_number_of_series() -> None:
    """G99: 200 agents have series of their own, the others one set of series together; the scrape stays small."""
    metrics = Metrics()
    for number in range(10_000):
        name = f"agent-{number}"
        for failure in (None, AGENT_ERROR, *REASONS):
            metrics.call(name, failure)
        metrics.changes.registered([Decision(Registered(), in_production(agent=an_agent(name=name)))])
    samples = metrics.samples()
    assert metrics.labels() == {OTHER, *(f"agent-{number}" for number in range(200))}
    assert len(samples) <= 201 * 20
    assert len(metrics.scrape()) < 500_000
    assert samples["podium_agent_calls_total", OTHER] == 9_800 * 8
    assert samples["podium_agent_failures_total", OTHER, "broken"] == 9_800


def test_the_series_of_a_deleted_agent_go_away() -> None:
    """G99: also with a call in flight, and its place is then free for another agent."""
    metrics = Metrics(most=1)
    metrics.call("old")
    in_flight = metrics.calls.of("old")
    assert in_flight is not None
    metrics.call("new", "broken")
    assert metrics.labels() == {"old", OTHER}
    metrics.agents.forget(["old", "never-seen"])
    assert metrics.labels() == {OTHER}
    metrics.call("new")
    in_flight.ended("broken", None)
    assert metrics.labels() == {"new", OTHER}
    assert metrics.samples()["podium_agent_failures_total", OTHER, "broken"] == 2


def test_a_call_that_fails_after_its_agent_was_deleted_takes_no_place() -> None:
    """G99: its failure is counted with the others; the place is free for an agent that is there."""
    metrics = Metrics(most=1)
    deleted = metrics.calls.of("deleted")
    assert deleted is not None
    metrics.agents.forget(["deleted"])
    deleted.ended("broken", None)
    metrics.call("bot")
    assert metrics.labels() == {"bot", OTHER}
    assert metrics.samples()["podium_agent_failures_total", OTHER, "broken"] == 1


def test_no_name_that_is_none_becomes_a_label() -> None:
    """G99: neither a hostile one nor that of an announcement that was refused, whose agent may not exist."""
    metrics = Metrics()
    hostile = ['a"b', "a\\nb", "{}", OTHER, "x" * 64, "", "ä"]
    for name in hostile:
        metrics.call(name)
    refused = Rejected(Malformed())
    metrics.changes.registered([Decision(refused, None), Decision(refused, a_state(an_agent(name="guess"))), None])
    assert metrics.labels() == {OTHER}
    assert metrics.samples()["podium_agent_calls_total", OTHER] == len(hostile)
    assert metrics.samples()["podium_agent_registrations_total", OTHER, "Rejected"] == 2


def test_at_zero_there_are_no_metrics_of_agents() -> None:
    """And nothing is counted."""
    metrics = Metrics(most=0)
    metrics.changes.registered([Decision(Registered(), a_state())])
    assert metrics.calls.of("bot") is None
    assert metrics.scrape() == b""


def test_failures_are_counted_by_reason() -> None:
    """And calls that have not failed by none."""
    metrics = Metrics()
    metrics.call("bot")
    metrics.call("bot")
    metrics.call("bot", AGENT_ERROR)
    metrics.call("bot", "connect-timeout")
    samples = metrics.samples()
    failures = {key[2]: value for key, value in samples.items() if key[0] == "podium_agent_failures_total"}
    assert failures == {"agent-error": 1, "connect-timeout": 1}
    assert samples["podium_agent_calls_total", "bot"] == 4
    assert samples["podium_agent_calls_under_way", "bot"] == 0


def test_headers_of_a_call_have_a_bounded_set_of_values() -> None:
    """G99: what MCP and A2A do not know is `other`, and so are tools beyond the first hundred."""

    def found(method: str, version: str) -> tuple[str | None, str | None]:
        protocol = protocol_of(CIMultiDict({"Mcp-Method": method, "A2A-Version": version}))
        return protocol.mcp_method, protocol.a2a_version

    assert {found(each, "1.0") for each in MCP_METHODS} == {(each, "1.0") for each in MCP_METHODS}
    assert {found(f"tools/{number}", str(number)) for number in range(500)} == {("other", "other")}
    assert protocol_of(CIMultiDict()).mcp_method is None
    assert {"0.3", "1.0"} == A2A_VERSIONS
    names = BoundedNames()
    assert len({names.of(f"tool-{number}") for number in range(500)}) == NAMES_MAX + 1
    assert names.of("tool-1") == "tool-1"
    assert BoundedNames().of("x" * 65) == BoundedNames().of('a"b') == "other"
