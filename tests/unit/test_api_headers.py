"""Headers that the API reads, and those that cross the gateway."""

from uuid import UUID

import pytest

from api.gateway.headers import request_headers, response_headers
from api.http.jsonrpc import is_rpc, request_id
from api.http.preconditions import expected_generation
from services.errors import InvalidRequest
from services.routing.routes import Route

ROUTE = Route(UUID(int=1), 7, "v1", "http://a", "/api", "http")


@pytest.mark.parametrize(("values", "generation"), [([], None), (["*"], None), (['"0"'], 0), (['"12"'], 12)])
def test_if_match_names_one_generation_or_any(values: list[str], generation: int | None) -> None:
    """Without If-Match or with `*`, any generation matches."""
    assert expected_generation(values) == generation


@pytest.mark.parametrize(
    "values",
    [['W/"3"'], ['"3", "4"'], ['"3"', '"4"'], ["*", "*"], ["3"], [""], ['"٣"'], ['"3" '], ['"3"\n'], ['"+3"'], ["**"]],
)
def test_other_forms_of_if_match_are_refused(values: list[str]) -> None:
    """The error names the header."""
    with pytest.raises(InvalidRequest) as refused:
        expected_generation(values)
    assert refused.value.field == "If-Match"


def test_what_connection_names_is_stripped_in_both_directions() -> None:
    """Several Connection headers count, in any letter case."""
    given = [(b"Connection", b"X-One, x-two"), (b"connection", b"X-THREE"), (b"x-keep", b"1")]
    given += [(name, b"1") for name in (b"X-One", b"X-Two", b"x-three")]
    assert set(request_headers(given)[0]) == {"x-keep", "x-request-id", "traceparent"}
    answered = dict(response_headers(given, ROUTE))
    added = {b"x-podium-generation", b"x-podium-deployment-id", b"content-security-policy", b"x-content-type-options"}
    assert set(answered) == {b"x-keep", *added}


def test_connection_cannot_remove_the_gateways_own_headers() -> None:
    """The gateway adds its own headers last, so Connection cannot remove them."""
    answered = dict(response_headers([(b"connection", b"x-podium-generation, content-security-policy")], ROUTE))
    assert answered[b"x-podium-generation"] == b"7"
    assert answered[b"content-security-policy"] == b"sandbox"
    passed, _ = request_headers([(b"connection", b"x-request-id"), (b"x-request-id", b"mine")])
    assert passed["x-request-id"] != "mine"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/agents/1/rpc", True),
        ("/agents/name/bot/rpc", True),
        ("/agents/1/deployments/v1/rpc", True),
        ("/agents/rpc", False),
        ("/agents/1", False),
        ("/agents/1/rpcs", False),
    ],
)
def test_which_paths_answer_in_json_rpc(path: str, *, expected: bool) -> None:
    """Only the paths of RPC routes."""
    assert is_rpc(path) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b'{"id":1.5}', 1.5), (b'{"id":"x"}', "x"), (b'{"id":false}', None), (b"1", None), (b'"id"', None), (b"", None)],
)
def test_the_id_of_a_call(body: bytes, expected: object) -> None:
    """A string or a number, as JSON-RPC allows; otherwise None."""
    assert request_id(body) == expected
