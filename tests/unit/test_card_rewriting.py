"""Rewriting of agent cards: callers see only the gateway's address."""

from typing import Any

import pytest
from pydantic_core import from_json, to_json

from api.gateway.agent_cards import AgentCardInvalid, rewritten

REGISTERED = "http://10.0.0.7:8000/a2a"
HERE = "https://podium.example/agents/name/bot/rpc"
CLAIMED = "https://bot.example/a2a"


def seen(card: object, *, needs_key: bool = False) -> dict[str, Any]:
    """The card as callers get it."""
    card = rewritten(to_json(card), registered_url=REGISTERED, rpc_url=HERE, needs_key=needs_key)
    found: dict[str, Any] = from_json(card)
    return found


def test_a_card_of_a2a_0_3() -> None:
    """The gateway's address replaces the agent's; other transports and signatures are dropped, the rest stays."""
    rest = {
        "protocolVersion": "0.3.0",
        "name": "bot",
        "provider": {"organization": "o", "url": "https://o.example"},
        "iconUrl": "https://o.example/icon.png",
        "capabilities": {"streaming": True},
        "skills": [{"id": "s", "tags": []}],
        "x-number": 123456789012345678901234567890,
    }
    card = {
        **rest,
        "url": CLAIMED,
        "preferredTransport": "JSONRPC",
        "additionalInterfaces": [
            {"url": CLAIMED, "transport": "JSONRPC"},
            {"url": "https://bot.example/v1", "transport": "HTTP+JSON"},
            {"url": "bot.example:50051", "transport": "GRPC"},
        ],
        "signatures": [{"protected": "e", "signature": "s"}],
    }
    assert seen(card) == {
        **rest,
        "url": HERE,
        "preferredTransport": "JSONRPC",
        "additionalInterfaces": [{"url": HERE, "transport": "JSONRPC"}],
    }
    assert seen({**rest, "url": CLAIMED}) == {**rest, "url": HERE, "preferredTransport": "JSONRPC"}


def test_json_rpc_beside_another_preferred_transport() -> None:
    """JSON-RPC becomes the preferred transport."""
    interfaces = [{"url": CLAIMED, "transport": "JSONRPC"}]
    card = {"url": "bot.example:50051", "preferredTransport": "GRPC", "additionalInterfaces": interfaces}
    assert seen(card) == {
        "url": HERE,
        "preferredTransport": "JSONRPC",
        "additionalInterfaces": [{"url": HERE, "transport": "JSONRPC"}],
    }


def test_a_card_of_a2a_1_0() -> None:
    """The JSON-RPC interfaces stay, each protocol version once, with their tenants."""
    interfaces = [
        {"url": "bot.example:50051", "protocolBinding": "GRPC", "protocolVersion": "1.0"},
        {"url": CLAIMED, "protocolBinding": "JSONRPC", "protocolVersion": "1.0", "tenant": "t"},
        {"url": f"{CLAIMED}/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0", "tenant": "t"},
        {"url": CLAIMED, "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
        {"url": f"{CLAIMED}/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
    ]
    assert seen({"name": "bot", "supportedInterfaces": interfaces, "signatures": [{}]}) == {
        "name": "bot",
        "supportedInterfaces": [
            {"url": HERE, "protocolBinding": "JSONRPC", "protocolVersion": "1.0", "tenant": "t"},
            {"url": HERE, "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
        ],
    }


def test_a_card_of_both_versions() -> None:
    """The fields of both versions are rewritten; a version without a JSON-RPC interface is dropped."""
    both = {
        "url": "bot.example:50051",
        "preferredTransport": "GRPC",
        "supportedInterfaces": [{"url": CLAIMED, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
    }
    assert seen(both) == {
        "supportedInterfaces": [{"url": HERE, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]
    }
    only_grpc = [{"url": "bot.example:50051", "protocolBinding": "GRPC"}]
    assert seen({"url": CLAIMED, "supportedInterfaces": only_grpc}) == {"url": HERE, "preferredTransport": "JSONRPC"}


def test_only_the_path_that_calls_go_to_is_offered() -> None:
    """Other JSON-RPC endpoints are dropped; if no endpoint has that path, all of them are kept."""
    other = {"url": "https://bot.example/old", "protocolBinding": "JSONRPC", "protocolVersion": "0.3"}
    one = {"url": CLAIMED, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    assert seen({"supportedInterfaces": [other, one]})["supportedInterfaces"] == [{**one, "url": HERE}]
    assert seen({"supportedInterfaces": [other]})["supportedInterfaces"] == [{**other, "url": HERE}]


@pytest.mark.parametrize(
    "card",
    [
        {},
        [],
        "card",
        None,
        {"name": "bot"},
        {"url": "bot.example:50051", "preferredTransport": "GRPC"},
        {"supportedInterfaces": []},
        {"supportedInterfaces": {"url": CLAIMED}},
        {"supportedInterfaces": [CLAIMED]},
        {"supportedInterfaces": [{"protocolBinding": "JSONRPC"}]},
        {"supportedInterfaces": [{"url": 7, "protocolBinding": "JSONRPC"}]},
        {"url": "http://[", "preferredTransport": "JSONRPC"},
        {"url": CLAIMED, "additionalInterfaces": 3},
    ],
)
def test_unusable_cards_are_invalid(card: object) -> None:
    """A card without a JSON-RPC interface, or of another shape, is invalid."""
    with pytest.raises(AgentCardInvalid):
        seen(card)


@pytest.mark.parametrize("card", [b"", b"{", b"\xff", b"<html>", b'{"url": NaN}', b"[" * 5000])
def test_cards_that_are_not_json_are_invalid(card: bytes) -> None:
    """Also for JSON that is nested too deeply, or contains NaN."""
    with pytest.raises(AgentCardInvalid):
        rewritten(card, registered_url=REGISTERED, rpc_url=HERE, needs_key=False)


OF_0_3 = {"url": CLAIMED, "preferredTransport": "JSONRPC"}
OF_1_0 = {"supportedInterfaces": [{"url": CLAIMED, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]}
# Credentials that the agent itself would ask for; the gateway removes them from calls.
AGENTS_SECURITY = {
    "authentication": {"schemes": ["Basic"]},
    "securitySchemes": {"google": {"type": "openIdConnect", "openIdConnectUrl": "https://a.example"}},
    "security": [{"google": ["openid"]}],
    "securityRequirements": [{"schemes": {"google": {"list": ["openid"]}}}],
}


@pytest.mark.parametrize("version", [OF_0_3, OF_1_0, {**OF_0_3, **OF_1_0}])
def test_credentials_that_do_not_reach_the_agent_are_not_asked_for(version: dict[str, Any]) -> None:
    """Also not by a skill."""
    skills = [{"id": "s", "security": [{"google": []}], "securityRequirements": [{"schemes": {}}]}, {"id": "t"}]
    card = seen({**version, **AGENTS_SECURITY, "skills": skills})
    assert AGENTS_SECURITY.keys().isdisjoint(card)
    assert card["skills"] == [{"id": "s"}, {"id": "t"}]


def test_the_key_of_the_gateway_is_asked_for() -> None:
    """In the form of the card's version, instead of what the agent asks for."""
    of_0_3, of_1_0 = {"type": "http", "scheme": "bearer"}, {"httpAuthSecurityScheme": {"scheme": "Bearer"}}
    card = seen({**OF_0_3, **AGENTS_SECURITY}, needs_key=True)
    assert (card["securitySchemes"], card["security"]) == ({"podium": of_0_3}, [{"podium": []}])
    assert "securityRequirements" not in card
    card = seen({**OF_1_0, **AGENTS_SECURITY}, needs_key=True)
    needed: list[Any] = [{"schemes": {"podium": {"list": []}}}]
    assert (card["securitySchemes"], card["securityRequirements"]) == ({"podium": of_1_0}, needed)
    assert "security" not in card
    card = seen({**OF_0_3, **OF_1_0}, needs_key=True)
    assert card["securitySchemes"] == {"podium": {**of_0_3, **of_1_0}}
    assert (card["security"], card["securityRequirements"]) == ([{"podium": []}], needed)


def test_no_extended_card_is_offered() -> None:
    """It would contain the agent's own addresses, since the gateway does not read answers of calls."""
    capabilities = {"streaming": True, "extendedAgentCard": True}
    claims = {"supportsAuthenticatedExtendedCard": True, "supportsExtendedAgentCard": True}
    for version in (OF_0_3, OF_1_0):
        card = seen({**version, **claims, "capabilities": capabilities})
        assert card["capabilities"] == {"streaming": True}
        assert claims.keys().isdisjoint(card)


@pytest.mark.parametrize("more", [{"skills": {"id": 1}}, {"skills": [7]}, {"capabilities": ["streaming"]}])
def test_cards_with_skills_or_capabilities_of_another_shape_are_invalid(more: dict[str, Any]) -> None:
    """They could ask for credentials in a place that is not checked."""
    with pytest.raises(AgentCardInvalid):
        seen({**OF_0_3, **more})
