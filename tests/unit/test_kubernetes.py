from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from api.app import create_app
from contracts.topology import REGISTRATIONS_QUEUE
from services.settings import Settings
from tests.support.commands import assert_is_command, project_version, variables
from tests.support.processes import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
# Where the published types of each API are, as models.
MODELS = {
    "v1": "cloudcoil.models.kubernetes.core.v1",
    "apps/v1": "cloudcoil.models.kubernetes.apps.v1",
    "batch/v1": "cloudcoil.models.kubernetes.batch.v1",
    "policy/v1": "cloudcoil.models.kubernetes.policy.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
}

Manifest = dict[str, Any]
MANIFESTS: list[Manifest] = [each for path in FILES for each in yaml.safe_load_all(path.read_text())]
WORKLOADS = [each for each in MANIFESTS if each["kind"] in {"Deployment", "Job"}]
DEPLOYMENTS = [each for each in MANIFESTS if each["kind"] == "Deployment"]


def name_of(manifest: Manifest) -> str:
    """`Deployment podium-api`."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def one(kind: str, name: str) -> Manifest:
    """The only manifest of this kind and name."""
    [found] = [each for each in MANIFESTS if name_of(each) == f"{kind} {name}"]
    return found


def pod_of(workload: Manifest) -> Manifest:
    """What the workload runs."""
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Manifest) -> Manifest:
    """Its one container: one process per container, one container per pod."""
    [container] = pod_of(workload)["containers"]
    return dict(container)


def check_against_published_type(manifest: Manifest) -> None:
    """Raise unless the type has every field, and reads back from each what the file says."""
    model = getattr(import_module(MODELS[manifest["apiVersion"]]), manifest["kind"])
    read = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert read == manifest


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_manifest_is_what_the_published_type_says(manifest: Manifest) -> None:
    """No field is misspelt, misplaced, missing or of another type."""
    check_against_published_type(manifest)


def misspelt(manifest: Manifest) -> Iterator[Manifest]:
    """The manifest, each time with one mistake that people make."""
    pod = pod_of(manifest)
    for wrong in ({"terminationGraceSeconds": 60}, {"containers": None}, {"terminationGracePeriodSeconds": "60"}):
        changed = {**pod, **wrong}
        yield {**manifest, "spec": {**manifest["spec"], "template": {"spec": changed}}}


def test_the_check_finds_mistakes() -> None:
    """A field that does not exist, one without its value, a number written as text."""
    for wrong in misspelt(one("Deployment", "podium-api")):
        with pytest.raises((ValidationError, AssertionError)):
            check_against_published_type(wrong)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_manifest_goes_into_any_namespace(manifest: Manifest) -> None:
    """Whoever applies it says where."""
    assert "namespace" not in manifest["metadata"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_a_container_runs_a_command_of_this_version(workload: Manifest) -> None:
    """Its image is tagged with the version of this checkout, whose command line has what it is told to run."""
    container = container_of(workload)
    assert container["image"] == f"podium:{project_version()}"
    assert_is_command(container["args"])


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_a_container_may_do_nothing_that_it_does_not_need(workload: Manifest) -> None:
    """Not root, no other privileges, nothing to write to, no token of the cluster, memory bounded."""
    pod, container = pod_of(workload), container_of(workload)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_every_variable_is_a_setting() -> None:
    """What the manifests set is what Podium reads, and what they refer to is in the example."""
    config, secret = one("ConfigMap", "podium")["data"], one("Secret", "podium")["stringData"]
    assert config.keys() | secret.keys() <= variables()
    for workload in WORKLOADS:
        for each in container_of(workload).get("env", []):
            if "value" in each:
                assert each["name"] in variables()
                continue
            reference = each["valueFrom"]["secretKeyRef"]
            assert reference["name"] == "podium"
            assert each["name"] == reference["key"]
            assert reference["key"] in secret


def test_the_settings_are_ones_that_podium_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of the ConfigMap can be read."""
    for name, value in one("ConfigMap", "podium")["data"].items():
        monkeypatch.setenv(name, value)
    assert Settings().log_format == "json"


@pytest.mark.parametrize("workload", DEPLOYMENTS, ids=name_of)
def test_a_pod_has_time_to_end_in_order(workload: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed only after its wait for the proxies and the longest orderly stop."""
    monkeypatch.setenv("PODIUM_DRAIN_TIMEOUT", one("ConfigMap", "podium")["data"]["PODIUM_DRAIN_TIMEOUT"])
    before_stop = container_of(workload).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0])[-1]
    needed = int(before_stop) + Settings().drain_timeout.total_seconds()
    assert pod_of(workload)["terminationGracePeriodSeconds"] > needed


def test_probes_ask_what_the_api_answers() -> None:
    """Each probe's path is a route, and its port the one that the API listens on."""
    container = container_of(one("Deployment", "podium-api"))
    [port] = container["ports"]
    assert port["containerPort"] == Settings().port
    paths = {route.path for route in create_app(Settings(secret_key=SecretStr("a test's key"))).routes}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"  # a database away is no reason to restart
    [service_port] = one("Service", "podium-api")["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]


@pytest.mark.parametrize("workload", DEPLOYMENTS, ids=name_of)
def test_whatever_selects_pods_selects_those_of_its_deployment(workload: Manifest) -> None:
    """The Deployment, its disruption budget and its Service mean the same pods, and more than one of them."""
    name = workload["metadata"]["name"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    assert one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == labels
    assert [each["spec"]["selector"] for each in MANIFESTS if each["kind"] == "Service"] == [
        pod["spec"]["template"]["metadata"]["labels"] for pod in DEPLOYMENTS if pod["metadata"]["name"] == "podium-api"
    ]
    assert workload["spec"]["replicas"] > 1


def test_workers_are_scaled_by_the_queue_that_they_read() -> None:
    """The scaler watches the registrations queue, with the address that the workers have."""
    scaler = one("ScaledObject", "podium-worker")["spec"]
    assert name_of(one("Deployment", scaler["scaleTargetRef"]["name"])) == "Deployment podium-worker"
    [trigger] = scaler["triggers"]
    assert trigger["metadata"]["queueName"] == REGISTRATIONS_QUEUE
    access = one("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]["secretTargetRef"]
    assert [(each["parameter"], each["name"], each["key"]) for each in access] == [
        ("host", "podium", "PODIUM_AMQP_URL")
    ]
    assert 1 < scaler["minReplicaCount"] < scaler["maxReplicaCount"]


def test_no_secret_is_applied_by_accident() -> None:
    """`kubectl apply -f` takes files by their ending; the example has another one and holds no value."""
    [example] = [path for path in FILES if "kind: Secret" in path.read_text()]
    assert example.suffix == ".example"
    secret = one("Secret", "podium")["stringData"]
    assert all("FILL-IN" in value for value in secret.values())
