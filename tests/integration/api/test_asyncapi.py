from importlib.resources import files

from pydantic import SecretStr

from tests.integration.api.conftest import Serve


async def test_the_asyncapi_document_is_public(serve: Serve) -> None:
    """The committed AsyncAPI document is served as JSON, also without a key."""
    api = await serve(api_key=SecretStr("a test's key"))
    answer = await api.get("/asyncapi")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == files("contracts").joinpath("asyncapi.json").read_bytes()
