from importlib.resources import files

from pydantic import SecretStr

from tests.integration.api.conftest import Serve


async def test_anybody_may_read_what_goes_over_the_broker(serve: Serve) -> None:
    """The committed AsyncAPI document is served as JSON, without a key where one is needed otherwise."""
    api = await serve(api_key=SecretStr("a test's key"))
    answer = await api.get("/asyncapi")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == files("contracts").joinpath("asyncapi.json").read_bytes()
