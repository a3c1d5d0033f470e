"""docs/access.md lists the rule of every route, as the code has it."""

import re

from pydantic import SecretStr

from api.app import create_app
from api.http.access import Rule, rules_of
from services.settings import Settings
from tests.support.processes import ROOT

ACCESS = ROOT / "docs" / "access.md"
TABLE = re.compile(r"(<!-- rules: .*? -->\n)(.*?)(<!-- end of rules -->)", re.DOTALL)
RENEW = "PODIUM_RENEW_SNAPSHOTS"


def rules_table() -> str:
    """Every route that needs a key as a line of a table, in the order of the application."""
    app = create_app(Settings(secret_key=SecretStr("s"), database_url=SecretStr("postgresql://h/d")))
    lines = ["| route | scope | agent |", "|---|---|---|"]
    rules = rules_of(app.routes)
    paths = list(dict.fromkeys(path for path, _ in rules))
    for (path, method), rule in sorted(rules.items(), key=lambda each: (paths.index(each[0][0]), each[0][1])):
        if method != "OPTIONS" and not rule.is_public:
            lines.append(f"| `{method} {path}` | {scopes_of(rule)} | {rule.agents} |")
    return "\n".join(lines) + "\n"


def scopes_of(rule: Rule) -> str:
    """The scopes, and the agent's own key where it is accepted."""
    scopes = " or ".join(f"`{scope}`" for scope in rule.scopes)
    return f"{scopes}, or the agent's own key" if rule.agent_key else scopes


def test_the_access_guide_lists_the_rule_of_every_route() -> None:
    """G71: what the document says is what the guard enforces."""
    from tests.conftest import EXTERNAL  # noqa: PLC0415 - a conftest is importable only while tests run

    text, table = ACCESS.read_text(), rules_table()
    renewed = TABLE.sub(lambda found: f"{found[1]}\n{table}{found[3]}", text)
    assert table in renewed, "the markers around the table are gone"
    if EXTERNAL.get(RENEW) == "1":
        ACCESS.write_text(renewed)
        text = renewed
    assert renewed == text, f"docs/access.md is out of date: {RENEW}=1 .venv/bin/pytest {__file__}, and read it"
