"""`podium keys` and `podium audit`."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import SecretStr

from services.settings import Settings
from tests.integration.api.client import Api, running_api
from tests.integration.cli.terminal import Terminal


@pytest_asyncio.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """An API that needs keys."""
    async with running_api(settings.model_copy(update={"require_keys": True})) as api:
        yield api


@pytest.fixture
def database(settings: Settings) -> dict[str, str]:
    """The variable with the address of the database."""
    return {"PODIUM_DATABASE_URL": settings.database_url.get_secret_value()}


async def test_from_the_first_key_to_the_last(terminal: Terminal, database: dict[str, str]) -> None:
    """G73: the first key comes from the database; it makes, lists, rotates and revokes others, and the log names it."""
    refused = await terminal.quick("agents")
    assert refused.code == 1
    assert "valid key" in refused.error
    made = await terminal.quickly_done("keys", "create", "ops", "--scope", "admin", "--bootstrap", "-q", **database)
    admin = {"PODIUM_API_KEY": made.out.strip()}

    options = (
        "--scope",
        "promote",
        "--scope",
        "read",
        "--agent",
        "team-*",
        "--owner",
        "team [bold]x",
        "--expires",
        "90d",
    )
    created = await terminal.quickly_done("keys", "create", "ci-deploy", *options, **admin)
    assert created.err == "Store the secret now: it cannot be read again.\n"
    secret = next(line.split()[-1] for line in created.out.splitlines() if line.strip().startswith("secret"))
    assert (await terminal.quickly_done("agents", "--json", PODIUM_API_KEY=secret)).json == []
    assert "ci-deploy" in (await terminal.quick("keys", "list", **admin)).out
    assert "team [bold]x" in (await terminal.quick("keys", "list", **admin)).out
    assert secret not in (await terminal.quick("keys", "list", "--json", **admin)).out

    rotated = await terminal.quickly_done("keys", "rotate", "ci-deploy", "--overlap", "1h", **admin)
    newer = next(line.split()[-1] for line in rotated.out.splitlines() if line.strip().startswith("secret"))
    assert "valid for 1h" in rotated.err
    for valid in (secret, newer):
        assert (await terminal.quick("agents", PODIUM_API_KEY=valid)).code == 0
    revoked = await terminal.quickly_done("keys", "revoke", "ci-deploy", **admin)
    assert revoked.out == "Key ci-deploy is revoked.\n"
    assert (await terminal.quick("agents", PODIUM_API_KEY=secret)).code == 1
    assert (await terminal.quick("keys", "revoke", "ci-deploy", **admin)).code == 4
    assert "revoked" in (await terminal.quick("keys", "list", "--revoked", **admin)).out

    entries = (await terminal.quickly_done("audit", "--json", **admin)).json
    assert [(each["action"], each["actor"]) for each in entries] == [
        ("key.revoked", "key:ops"),
        ("key.rotated", "key:ops"),
        ("key.created", "key:ops"),
        ("key.created", "bootstrap"),
    ]
    by_action = ("audit", "--json", "--actor", "key:ops", "--action", "key.created")
    assert (await terminal.quickly_done(*by_action, **admin)).json == entries[2:3]
    shown = await terminal.quick("audit", "--limit", "2", **admin)
    assert "key.revoked" in shown.out
    assert f"--before {entries[1]['id']}" in shown.err
    nothing = await terminal.quick("audit", "--agent", "nobody", **admin)
    assert (nothing.out, nothing.err) == ("", "The audit log is empty.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ops",), "--scope"),
        (("ops", "--scope", "root"), "--scope"),
        (("O p", "--scope", "read"), "name"),
        (("ops", "--scope", "read", "--agent", "*"), "agents"),
        (("ops", "--scope", "read", "--calls-per-second", "0"), "calls_per_second"),
    ],
)
async def test_a_first_key_that_cannot_be_made(
    terminal: Terminal, database: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    """Exit code 2, and one sentence that names what is wrong."""
    refused = await terminal.quick("keys", "create", *arguments, "--bootstrap", **database)
    assert refused.code == 2
    assert says in refused.error


async def test_a_first_key_needs_the_database(terminal: Terminal) -> None:
    """Without its address: exit code 2; when it cannot be reached: 1, and what to do."""
    refused = await terminal.quick("keys", "create", "ops", "--scope", "admin", "--bootstrap")
    assert refused.code == 2
    assert "PODIUM_DATABASE_URL" in refused.error
    nowhere = {"PODIUM_DATABASE_URL": SecretStr("postgresql://podium@127.0.0.1:9/podium").get_secret_value()}
    refused = await terminal.quick("keys", "create", "ops", "--scope", "admin", "--bootstrap", **nowhere)
    assert refused.code == 1
    assert "database" in refused.error


async def test_the_calls_of_an_agent_are_limited_by_a_command(settings: Settings, terminal: Terminal) -> None:
    """`podium agents set` sets limits and what happens to Authorization, and shows them."""
    async with running_api(settings) as opened:
        await opened.register("bot", "v1")
        url = {"PODIUM_API_URL": opened.url}
        options = ("--calls-per-second", "20", "--calls-in-flight", "50", "--forward-authorization", "pass")
        shown = await terminal.quick("agents", "set", "bot", *options, **url)
        assert "20 per second, 50 under way" in shown.out
        assert "passed to the agent" in shown.out
        shown = await terminal.quick(
            "agents", "set", "bot", "--calls-per-second", "none", "--calls-in-flight", "none", **url
        )
        assert "per second" not in shown.out
        assert (await terminal.quick("agents", "set", "bot", "--calls-per-second", "-1", **url)).code == 2
