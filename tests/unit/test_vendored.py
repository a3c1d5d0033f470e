import hashlib
from pathlib import Path

import pytest

from tests.support.processes import ROOT

LISTS = [ROOT / "api" / "console" / "static" / "VENDORED", ROOT / "tests" / "e2e" / "vendored" / "VENDORED"]


@pytest.mark.parametrize("listed", LISTS, ids=lambda path: path.parent.name)
def test_files_of_others_are_what_their_packages_have(listed: Path) -> None:
    """Each has the SHA-256 that was read from the npm package, so a change of one is seen."""
    lines = [line.split() for line in listed.read_text().splitlines() if not line.startswith("#")]
    assert lines
    for name, _package, _version, _file, digest in lines:
        assert hashlib.sha256((listed.parent / name).read_bytes()).hexdigest() == digest, name


def test_every_minified_script_is_listed() -> None:
    """No script of others is served without its origin."""
    for listed in LISTS:
        names = {line.split()[0] for line in listed.read_text().splitlines() if not line.startswith("#")}
        assert {each.name for each in listed.parent.glob("*.min.js")} == names
