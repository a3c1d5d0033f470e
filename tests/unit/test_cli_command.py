from pathlib import Path
from typing import Any

from pydantic import SecretStr

from podium.cli.command import DEFAULT_API_URL, api_key, api_url, environment
from podium.local.system import System
from services.settings import Settings


def test_the_environment_takes_precedence_over_the_file_of_podium_up(tmp_path: Path) -> None:
    """A variable that is in neither has its default."""
    file = tmp_path / "podium.env"
    file.write_text("PODIUM_API_URL=http://127.0.0.1:1/\nPODIUM_AMQP_URL=amqp://a:b=c@d/\nOTHER=x\nPODIUM_EMPTY=\n")
    found = environment({"PODIUM_AMQP_URL": "amqp://mine/", "PODIUM_API_KEY": "", "HOME": "/"}, file)
    assert found == {"PODIUM_API_URL": "http://127.0.0.1:1/", "PODIUM_AMQP_URL": "amqp://mine/"}
    assert api_url(None, found) == "http://127.0.0.1:1"
    assert api_url("http://127.0.0.1:2", found) == "http://127.0.0.1:2"


def test_the_default_address_is_this_machine(tmp_path: Path) -> None:
    """Also if the path of the file is a directory."""
    assert environment({}, tmp_path) == {}
    assert environment({}, tmp_path / "none") == {}
    assert api_url(None, {}) == DEFAULT_API_URL


def test_the_key_of_podium_up_is_sent_only_to_its_own_api(tmp_path: Path) -> None:
    """For another API, the user names the key."""
    file = tmp_path / "podium.env"
    file.write_text("PODIUM_API_URL=http://127.0.0.1:1\nPODIUM_API_KEY=kept\n")
    assert api_key(None, "http://127.0.0.1:1", {}, file) == "kept"
    assert api_key(None, "http://elsewhere:1", {}, file) is None
    assert api_key(None, "http://127.0.0.1:1", {"PODIUM_API_KEY": "own"}, file) == "own"
    assert api_key("given", "http://elsewhere:1", {"PODIUM_API_KEY": "own"}, file) == "given"
    assert api_key(None, DEFAULT_API_URL, {}, tmp_path / "none") is None


def test_podium_up_stores_its_key_for_the_commands() -> None:
    """No key is stored if the API needs none."""
    none: Any = None

    def kept(**settings: Any) -> str | None:
        system = System(Settings(**settings), Path(), servers=none, parts={}, servers_failure=none)
        return system.environment.get("PODIUM_API_KEY")

    assert kept(api_key=SecretStr("secret")) == "secret"
    assert kept() is None
