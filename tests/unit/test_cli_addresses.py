from pathlib import Path

from podium.commands.addresses import DEFAULT_API_URL, api_url, environment


def test_the_environment_goes_before_the_file_of_podium_up(tmp_path: Path) -> None:
    """What is in neither has its default."""
    file = tmp_path / "podium.env"
    file.write_text("PODIUM_API_URL=http://127.0.0.1:1/\nPODIUM_AMQP_URL=amqp://a:b=c@d/\nOTHER=x\nPODIUM_EMPTY=\n")
    found = environment({"PODIUM_AMQP_URL": "amqp://mine/", "PODIUM_API_KEY": "", "HOME": "/"}, file)
    assert found == {"PODIUM_API_URL": "http://127.0.0.1:1/", "PODIUM_AMQP_URL": "amqp://mine/"}
    assert api_url(None, found) == "http://127.0.0.1:1"
    assert api_url("http://127.0.0.1:2", found) == "http://127.0.0.1:2"


def test_without_a_file_it_is_this_machine(tmp_path: Path) -> None:
    """A folder in the file's place is no file either."""
    assert environment({}, tmp_path) == {}
    assert environment({}, tmp_path / "none") == {}
    assert api_url(None, {}) == DEFAULT_API_URL
