import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README_LINES = 130
# G1 to this one are the rules of state, each of which some test cites.
RULES_OF_STATE = 17

LINK = re.compile(r"\[`?(?P<name>[^]`]*)`?\]\((?P<target>[^)#\s]+)\)")
SECTION = re.compile(r"^## (?P<title>[^\n]*)\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ANCHORED = re.compile(r"\]\((?P<target>[^)#\s:]*)#(?P<anchor>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CITATION = re.compile(r"\bG(?P<number>\d{1,3})\b")
# Where guarantees are cited. Anywhere else, such as in lock files, the pattern may stand for something else.
CITING_FOLDERS = ("contracts", "services", "workers", "api", "podium", "examples", "tests", "docs")
# Speaks about numbers as such.
NOT_CITING = {Path(__file__).resolve()}


def links(document: Path) -> list[tuple[str, Path]]:
    """Each link of a document into the tree: its text, and the file it leads to."""
    return links_in(document.read_text(), document.parent)


def links_in(text: str, folder: Path) -> list[tuple[str, Path]]:
    """The same for a part of a document in this folder."""
    found = LINK.finditer(text)
    return [(link["name"], folder / link["target"]) for link in found if "://" not in link["target"]]


def named_tests(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Those of the links that name one test function of a file."""
    return [
        (name, target) for name, target in found if "/tests/" in str(target) and re.fullmatch(r"[a-z0-9_]+…?", name)
    ]


def has_test(name: str, file: Path) -> bool:
    """Whether the file has this test function; `…` stands for the rest of its name."""
    pattern = re.escape(name.removesuffix("…")) + ("" if name.endswith("…") else r"\(")
    return re.search(rf"def test_{pattern}", file.read_text()) is not None


def guarantees() -> dict[int, str]:
    """The text of each guarantee by its number, in the order of the document."""
    numbered: dict[int, str] = {}
    for section in SECTION.finditer(GUARANTEES.read_text()):
        number = re.match(r"G(\d+) \S", section["title"])
        assert number is not None, f"{section['title']}: a heading starts with the number of a guarantee"
        assert int(number[1]) not in numbered, f"G{number[1]} is there twice"
        numbered[int(number[1])] = section["text"]
    return numbered


def citations() -> Iterator[tuple[Path, int]]:
    """Every `G<number>` in the code, the tests and the documents, with the file that cites it."""
    files = [*ROOT.glob("*.md"), *(path for folder in CITING_FOLDERS for path in (ROOT / folder).rglob("*"))]
    for path in files:
        if path.suffix in {".py", ".md"} and path.resolve() not in NOT_CITING:
            yield from ((path, int(found["number"])) for found in CITATION.finditer(path.read_text()))


@pytest.mark.parametrize("document", [README, GUARANTEES], ids=lambda path: path.name)
def test_every_link_of_the_document_leads_somewhere(document: Path) -> None:
    """A link to a file that was moved or removed fails."""
    assert links(document)
    assert [str(target) for _, target in links(document) if not target.exists()] == []


def anchors(document: Path) -> set[str]:
    """What a link can name in a document: its headings as GitHub writes them."""
    headings = HEADING.findall(document.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_section_leads_to_one(document: Path) -> None:
    """A heading that was renamed is noticed where another page, or the page itself, links to it."""
    for found in ANCHORED.finditer(document.read_text()):
        target = document.parent / found["target"] if found["target"] else document
        assert found["anchor"] in anchors(target), found[0]


def test_every_test_that_a_document_names_exists() -> None:
    """A link whose text is the name of a test leads to the file that has this test."""
    assert named_tests(links(GUARANTEES))
    named = [*named_tests(links(README)), *named_tests(links(GUARANTEES))]
    assert [name for name, file in named if not has_test(name, file)] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a_test", True), ("a_te…", True), ("a_te", False), ("another_test", False), ("other_te…", False)],
)
def test_a_name_is_found_only_if_the_file_has_this_test(tmp_path: Path, name: str, *, expected: bool) -> None:
    """The whole name must match, or its beginning if the rest is left out."""
    file = tmp_path / "test_something.py"
    file.write_text("async def test_a_test() -> None: ...\n")
    assert has_test(name, file) is expected


def test_the_readme_is_short() -> None:
    """It fits into a few screens; the details are in docs/."""
    assert len(README.read_text().splitlines()) <= README_LINES


def test_the_readme_shows_what_the_demo_prints() -> None:
    """Each numbered step that the README shows is one that `make demo` takes, in the same order."""
    told = re.findall(r'step\(\s*"(\d\. [^"]+)"', (ROOT / "podium" / "local" / "demo.py").read_text())
    assert told
    assert re.findall(r"^(\d\. .+)$", README.read_text().partition("$ make test")[0], re.MULTILINE) == told


def test_the_architecture_names_code_that_exists() -> None:
    """Each function, class, constant or column that it names in backticks is in the code."""
    named = set(
        re.findall(r"`((?!PODIUM_)_?[A-Za-z]+(?:_[A-Za-z]+)+|[A-Z][a-z]+(?:[A-Z][a-z]+)+)`", ARCHITECTURE.read_text())
    )
    packages = ("contracts", "services", "workers", "api", "podium", "tests")
    code = "\n".join(path.read_text() for package in packages for path in (ROOT / package).rglob("*.py"))
    assert named
    assert {name for name in named if not re.search(rf"\b{name}\b", code)} == set()


def test_guarantees_are_numbered_without_gaps() -> None:
    """G1, G2 and so on, in this order."""
    numbers = list(guarantees())
    assert len(numbers) >= RULES_OF_STATE
    assert numbers == list(range(1, len(numbers) + 1))


def test_each_guarantee_names_a_test() -> None:
    """Behind `Test:` at least one link leads to an existing file or folder of tests."""
    for number, text in guarantees().items():
        _, marker, proof = text.partition("\nTest: ")
        assert marker, f"G{number} has no line of tests"
        targets = [target.resolve() for _, target in links_in(proof, GUARANTEES.parent)]
        assert targets, f"G{number} names no test"
        assert all(target.is_relative_to(ROOT / "tests") and target.exists() for target in targets), f"G{number}"


def test_every_guarantee_cited_exists() -> None:
    """Whoever looks a number up in docs/guarantees.md finds it; the rules of state are cited by tests."""
    known, cited = guarantees().keys(), list(citations())
    assert {number for path, number in cited if path.is_relative_to(ROOT / "tests")} >= set(
        range(1, RULES_OF_STATE + 1)
    )
    assert [f"{path.relative_to(ROOT)}: G{number}" for path, number in cited if number not in known] == []
