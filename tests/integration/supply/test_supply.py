"""`make sbom` and `make audit`, without a network. The first run installs their tools."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT

# Nothing listens there.
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
LOCKED = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>\S+).*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


def make(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run make, in the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],  # noqa: S607 - whichever make the developer has
        cwd=ROOT,
        env={**environment, **environ},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    """The tools, installed from their lock file if they are not there."""
    installed = make(".venv-supply/installed")
    assert installed.returncode == 0, installed.stderr


def test_the_sbom_lists_what_is_locked_and_is_the_same_each_time(tmp_path: Path) -> None:
    """Every package with its version, its package URL and all its hashes, and no other; made without a network."""
    texts = []
    # Validation takes seconds.
    for name, check in (("first.json", "--validate"), ("second.json", "--no-validate")):
        made = make("sbom", f"SBOM={tmp_path / name}", f"SBOM_CHECK={check}", **NOWHERE)
        assert made.returncode == 0, made.stderr
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert str(ROOT) not in texts[0]
    sbom: dict[str, Any] = json.loads(texts[0])
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "podium")
    listed = {
        (each["name"], each["version"], each["purl"]): {
            digest["content"] for source in each["externalReferences"] for digest in source.get("hashes", [])
        }
        for each in sbom["components"]
    }
    locked = {
        (found["name"], found["version"], f"pkg:pypi/{found['name']}@{found['version']}"): set(
            re.findall("sha256:([0-9a-f]{64})", found[0])
        )
        for found in LOCKED.finditer((ROOT / "requirements.lock").read_text())
    }
    assert listed == locked


def test_an_audit_that_cannot_ask_says_that_nothing_was_checked() -> None:
    """It is a failure with a sentence, never taken for a clean result."""
    audited = make("audit", **NOWHERE)
    assert audited.returncode != 0
    assert "NOTHING WAS CHECKED" in audited.stderr
    assert "Traceback" not in audited.stderr
    assert "No vulnerability" not in audited.stdout
