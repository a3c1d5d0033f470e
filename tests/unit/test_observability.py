"""The dashboard, the alert rules and the table of metrics are held to what the processes export."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from api.app import create_app
from services.settings import Settings
from services.storage.database import make_engine
from tests.support.processes import ROOT
from workers.metrics import WorkerMetrics
from workers.monitoring import Monitor

FOLDER = ROOT / "deploy" / "observability"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
GUIDE = ROOT / "docs" / "observability.md"
OPERATIONS = ROOT / "docs" / "operations.md"
SETTINGS = Settings(secret_key=SecretStr("s"), database_url=SecretStr("postgresql://h/d"))


class Strict(BaseModel):
    """A mapping without other keys."""

    model_config = ConfigDict(extra="forbid")


class Alert(Strict):
    """An alerting rule (https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/)."""

    alert: str
    expr: str
    wait: Annotated[str, StringConstraints(pattern=r"^\d+[smhd]$")] = Field(alias="for")
    labels: dict[Literal["severity"], Literal["critical", "warning"]]
    annotations: dict[Literal["summary", "runbook"], str]


class Group(Strict):
    """A group of rules."""

    name: str
    rules: list[Alert]


class Rules(Strict):
    """A file of rules."""

    groups: list[Group]


RULES = [rule for group in Rules.model_validate(yaml.safe_load(ALERTS.read_text())).groups for rule in group.rules]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard, rows included."""
    return [*DASHBOARD["panels"], *(inner for row in DASHBOARD["panels"] for inner in row.get("panels", []))]


def expressions(*, with_alerts: bool = True) -> Iterator[str]:
    """Every query of the dashboard, and of the alerts; Grafana's own variables are replaced."""
    if with_alerts:
        yield from (rule.expr for rule in RULES)
    for panel in panels():
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "5m").replace("$agent", ".*")


def metrics_in(expression: str) -> set[str]:
    """The names of the series that a query reads. Raises `ValueError` if it is not PromQL."""
    promql_parser.parse(expression)
    without_labels = re.sub(r"\{[^}]*\}|\b(?:by|on)\s*\([^)]*\)", "", expression)
    return set(re.findall(r"\bpodium_\w+", without_labels))


def series_of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The series that each metric of a registry has, as Prometheus names them, also without any sample so far."""
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {
        family.name + endings[family.type][0].replace("_bucket", ""): {
            family.name + end for end in endings[family.type]
        }
        for family in registry.collect()
    }


@pytest.fixture(scope="module")
async def exported() -> dict[str, set[str]]:
    """Every metric of the API and of workers, with its series."""
    app, worker = create_app(SETTINGS), WorkerMetrics(SETTINGS.metrics_agents)
    async with app.lifespan():
        of_api = series_of(app.state.measured.registry) | series_of(app.state.measured.of_agents)
    Monitor(SETTINGS, make_engine(SETTINGS, application_name="test", pool_size=1), worker)
    return of_api | series_of(worker.registry)


def test_every_query_reads_metrics_that_are_exported(exported: dict[str, set[str]]) -> None:
    """Each query of the dashboard and of the alerts is PromQL, and names series that a process has."""
    series = set().union(*exported.values())
    queries = list(expressions())
    assert len(queries) > 40
    for query in queries:
        assert metrics_in(query), query
        assert metrics_in(query) <= series, query


def test_webhooks_are_watched() -> None:
    """Alerts fire for those that are disabled and for those that are behind; the dashboard shows their metrics."""
    alerts = {rule.alert: metrics_in(rule.expr) for rule in RULES}
    assert alerts["PodiumWebhookDisabled"] == {"podium_webhooks"}
    assert alerts["PodiumWebhookLags"] == {"podium_webhook_oldest_seconds"}
    shown = set().union(*(metrics_in(query) for query in expressions(with_alerts=False)))
    assert {"podium_webhooks", "podium_webhook_oldest_seconds", "podium_webhook_deliveries_total"} <= shown


def test_a_wrong_query_is_found() -> None:
    """The parser refuses what Prometheus would refuse."""
    with pytest.raises(ValueError, match="invalid promql query"):
        metrics_in("sum by (agent (podium_rpc_calls_total))")


def test_the_guide_lists_every_metric(exported: dict[str, set[str]]) -> None:
    """docs/observability.md names each metric that a process exports, and no other; so does what operators watch."""
    listed = set(re.findall(r"^\| `(podium_\w+)`", GUIDE.read_text(), re.MULTILINE))
    assert listed == exported.keys()
    runbook = OPERATIONS.read_text().partition("## What alerts mean")[2]
    named = set(re.findall(r"`(podium_[a-z_]+)`", runbook))
    assert named
    assert named <= exported.keys()


def test_every_alert_says_what_to_do() -> None:
    """Each has a name of its own, waits before it fires, and leads to a section of the operations guide."""
    headings = re.findall(r"^##+ (.*)$", OPERATIONS.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len({rule.alert for rule in RULES}) == len(RULES)
    for rule in RULES:
        file, anchor = rule.annotations["runbook"].split("#")
        assert (ROOT / file) == OPERATIONS
        assert anchor in anchors, anchor
        assert rule.annotations["summary"].endswith(".")
        assert f"`{rule.alert}`" in GUIDE.read_text(), rule.alert


def test_the_panels_of_the_dashboard_are_distinct_and_do_not_overlap() -> None:
    """Ids and titles are unique; every panel has its place and, unless it is a row, a query."""
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    assert len({panel["title"] for panel in panels()}) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "agent"}


def test_promtool_accepts_the_files() -> None:
    """Where Prometheus' own tool is installed, it finds nothing wrong."""
    if (promtool := shutil.which("promtool")) is None:
        return
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
