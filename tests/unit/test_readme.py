import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"\[`?(?P<name>[^]`]*)`?\]\((?P<target>[^)#\s]+)\)")


def links() -> list[tuple[str, Path]]:
    """Each link of the README into the tree: what it is called, and the file."""
    found = LINK.finditer((ROOT / "README.md").read_text())
    return [(link["name"], ROOT / link["target"]) for link in found if "://" not in link["target"]]


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """A promise whose test was renamed or removed is noticed."""
    assert links()
    assert [str(target) for _, target in links() if not target.exists()] == []


def test_every_test_that_the_readme_names_exists() -> None:
    """A promise that names one test names a function of the linked file; `…` stands for the rest of its name."""
    for name, target in links():
        if "/tests/" in str(target) and re.fullmatch(r"[a-z_]+…?", name):
            assert f"def test_{name.removesuffix('…')}" in target.read_text(), name
