import json
import re
import tomllib

import yaml

from tests.support.commands import variables
from tests.support.processes import ROOT

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in LINES if line and not line.startswith("#")]
RULES = (ROOT / ".dockerignore").read_text().splitlines()


def said(instruction: str) -> list[str]:
    """What each of these instructions says."""
    return [text for name, text in INSTRUCTIONS if name == instruction]


def copied() -> set[str]:
    """What is copied from the checkout."""
    return {source for text in said("COPY") if "--from" not in text for source in text.split()[:-1]}


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    """Each source exists, and .dockerignore lets exactly these through."""
    assert all((ROOT / source).exists() for source in copied())
    assert RULES.index("*") < min(number for number, rule in enumerate(RULES) if rule.startswith("!"))
    assert {rule.removeprefix("!") for rule in RULES if rule.startswith("!")} == copied()


def test_every_package_of_the_wheel_is_copied() -> None:
    """The image is built from all that the wheel is made of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied() == needed | {"requirements.lock", "requirements-otel.lock", "requirements-build.lock"}


def test_only_locked_wheels_are_installed() -> None:
    """Every installation checks hashes or takes the wheel just built, none compiles, none is of a development tool."""
    installs = re.findall(r"pip (?:--python \S+ )?install (.*?)(?=&&|$)", " && ".join(said("RUN")))
    assert [line.split()[-1] for line in installs] == [
        "requirements-build.lock",
        '"$LOCK"',
        "/wheels/*.whl",
    ]
    assert said("ARG") == ["LOCK=requirements.lock"]
    for line in installs[:2]:
        assert {"--require-hashes", "--only-binary=:all:"} <= set(line.split())
    assert {"--no-deps", "--no-index"} <= set(installs[2].split())
    assert not re.search(r"apt-get|apk|gcc|build-essential", " ".join(said("RUN")))


def test_the_image_is_small_and_runs_as_nobody_in_particular() -> None:
    """Two stages of one pinned slim image; the second gets the environment alone and is not root."""
    assert {text.split()[0] for text in said("FROM")} == {"python:3.12-slim-bookworm"}
    assert [text.split()[0] for text in said("COPY") if "--from" in text] == ["--from=build"]
    assert said("USER") == ["10001:10001"]
    assert json.loads(said("ENTRYPOINT")[0]) == ["podium"]
    assert not said("CMD")
    assert not said("HEALTHCHECK")  # each part needs another one, or none


def test_kubernetes_runs_the_image_s_own_user() -> None:
    """The manifests name the user that the image was made for."""
    user, group = map(int, said("USER")[0].split(":"))
    for name in ("api", "worker", "migrate"):
        text = (ROOT / "deploy" / "kubernetes" / f"{name}.yaml").read_text()
        [workload] = [each for each in yaml.safe_load_all(text) if each["kind"] in {"Deployment", "Job"}]
        context = workload["spec"]["template"]["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (user, group)


def test_the_variables_of_the_image_are_settings() -> None:
    """What the image sets for Podium is what Podium reads."""
    names = set(re.findall(r"\b(PODIUM_\w+)=", " ".join(said("ENV"))))
    assert names == {"PODIUM_HOST", "PODIUM_LOG_FORMAT"}
    assert names <= variables()
