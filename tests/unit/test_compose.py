import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.settings import Settings
from tests.support import containers
from tests.support.commands import assert_is_command, project_version, variables
from tests.support.documents import documented_command
from tests.support.processes import ROOT

FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OWN = [name for name, service in SERVICES.items() if service["image"].startswith("podium:")]
REQUIRED = set(re.findall(r"\$\{(\w+):\?", FILE.read_text()))


def texts(node: Any) -> Iterator[str]:
    """Every text in the file, however deep."""
    if isinstance(node, dict):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)
    elif isinstance(node, str):
        yield node


def seconds(duration: str) -> float:
    """`30s` and `1m` as Compose reads them."""
    number, unit = duration[:-1], duration[-1]
    return float(number) * {"s": 1, "m": 60}[unit]


def test_the_file_is_what_the_published_schema_says(tmp_path: Path) -> None:
    """The Compose specification's schema takes it, and refuses a misspelt field."""

    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert check(FILE).returncode == 0, check(FILE).stdout
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("healthcheck:", "healthchecks:"))
    assert check(wrong).returncode != 0


def test_the_whole_system_is_there() -> None:
    """Both servers, one migration, two of each part that may be many."""
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {
        "postgres",
        "rabbitmq",
        "migrate",
        "api",
        "worker",
    }
    assert sorted(OWN) == ["api", "migrate", "worker"]
    assert {name: SERVICES[name].get("deploy", {}).get("replicas", 1) for name in OWN} == {
        "migrate": 1,
        "api": 2,
        "worker": 2,
    }
    first, last = re.fullmatch(r"127\.0\.0\.1:(\d+)-(\d+):8080", SERVICES["api"]["ports"][0]).groups()  # type: ignore[union-attr]
    assert int(last) - int(first) + 1 == 2, "each replica needs a port of its own"
    assert Settings().port == 8080


@pytest.mark.parametrize("name", OWN)
def test_a_part_runs_a_command_of_this_version(name: str) -> None:
    """The image is tagged with this checkout's version; the command line has what it is told to run."""
    service = SERVICES[name]
    assert service["image"] == f"podium:{project_version()}"
    assert_is_command(service["command"])


@pytest.mark.parametrize("name", OWN)
def test_a_part_gets_settings_that_exist(name: str) -> None:
    """Every variable is one that Podium reads; only the API gets keys, which it needs beyond loopback."""
    given = set(SERVICES[name]["environment"])
    assert given <= variables()
    keys = {"PODIUM_API_KEY", "PODIUM_SECRET_KEY"}
    assert given & keys == (keys if name == "api" else set())


@pytest.mark.parametrize("name", OWN)
def test_a_part_waits_for_what_it_needs(name: str) -> None:
    """Servers that answer, and for all but the migration itself a schema that is there."""
    conditions = {other: each["condition"] for other, each in SERVICES[name]["depends_on"].items()}
    expected = {"postgres": "service_healthy", "rabbitmq": "service_healthy"}
    if name != "migrate":
        expected["migrate"] = "service_completed_successfully"
    assert conditions == expected
    assert all("healthcheck" in SERVICES[server] for server in ("postgres", "rabbitmq"))


@pytest.mark.parametrize("name", OWN)
def test_a_part_may_do_nothing_that_it_does_not_need(name: str) -> None:
    """It writes nowhere, has no privileges, and has time to end in order."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert seconds(service["stop_grace_period"]) > Settings().drain_timeout.total_seconds()


def test_the_profile_observability_uses_the_files_of_this_repository() -> None:
    """Prometheus and Grafana are pinned, read files that exist, and scrape every replica on its port."""
    optional = {name: service for name, service in SERVICES.items() if "profiles" in service}
    assert {name: service["profiles"] for name, service in optional.items()} == {
        "prometheus": ["observability"],
        "grafana": ["observability"],
    }
    for service in optional.values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        for source, *_ in (volume.split(":") for volume in service["volumes"]):
            assert source == "prometheus" or (ROOT / source).is_file(), source
    scraped = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus.yml").read_text())["scrape_configs"]
    ports = {each["dns_sd_configs"][0]["names"][0]: each["dns_sd_configs"][0]["port"] for each in scraped}
    assert ports == {"api": 8080, "worker": SERVICES["worker"]["environment"]["PODIUM_WORKER_PORT"]}


def test_prometheus_gets_a_key_of_its_own() -> None:
    """One that can be limited to reading: no service but the API gets the key that may do everything."""
    assert {name: each["environment"] for name, each in COMPOSE["secrets"].items()} == {
        "podium_metrics_key": "PODIUM_METRICS_KEY"
    }
    assert SERVICES["prometheus"]["secrets"] == ["podium_metrics_key"]
    scraped = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus.yml").read_text())["scrape_configs"]
    files = [each["authorization"]["credentials_file"] for each in scraped if "authorization" in each]
    assert files == ["/run/secrets/podium_metrics_key"]
    assert FILE.read_text().count("PODIUM_API_KEY") == 2, "the name and the value in the environment of the API"


def test_nothing_is_published_beyond_this_machine() -> None:
    """Every port is on loopback."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_password_has_a_default() -> None:
    """Each comes from a variable that must be set, and whoever forgets is told what to do."""
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASS|KEY|URL", variable):
                assert re.search(r"\$\{\w+:\?is not set\. .*docs/operations\.md", value), variable
    assert all(":-" not in text for text in texts(COMPOSE))


def test_the_documented_command_makes_every_variable(tmp_path: Path) -> None:
    """`.env` gets each required variable, each time other values that fit into a URL, readable by its owner alone.

    The key of Prometheus is empty: it can be made only once the API runs.
    """
    command = documented_command(ROOT / "docs" / "operations.md", "openssl rand")
    values = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        subprocess.run(["sh", "-euc", command], cwd=folder, check=True)  # noqa: S607 - whichever shell the reader has
        assert (folder / ".env").stat().st_mode & 0o777 == 0o600
        values.append(dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines()))
    assert [each.pop("PODIUM_METRICS_KEY") for each in values] == ["", ""]
    assert values[0].keys() == REQUIRED
    assert len({*values[0].values(), *values[1].values()}) == 2 * len(REQUIRED)
    assert all(re.fullmatch(r"[A-Za-z0-9]{32,}", value) for value in values[0].values())


def test_the_file_and_the_tests_use_servers_of_one_release() -> None:
    """What is tested in containers is what the file runs."""

    def release(image: str) -> tuple[str, str]:
        name, tag = image.split(":")
        return name, tag.split("-")[0]

    assert SERVICES["postgres"]["image"] == containers.POSTGRES_IMAGE
    assert release(SERVICES["rabbitmq"]["image"]) == release(containers.RABBITMQ_IMAGE)
    assert "management" in SERVICES["rabbitmq"]["image"]


def test_secrets_stay_out_of_images_and_of_the_repository() -> None:
    """`.env` is neither committed nor sent to the builder."""
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert not any(rule.startswith("!.") for rule in rules)
