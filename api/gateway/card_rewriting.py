"""An agent card as callers of the gateway need it: one way in, through the gateway (A2A 0.3 and 1.0).

https://a2a-protocol.org/latest/specification/#441-agentcard
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from api.http.jsonrpc import ForwardingFailure

JSON_RPC = "JSONRPC"

Json = dict[str, Any]


class AgentCardInvalid(ForwardingFailure):
    """What the agent serves as its card is none that callers of the gateway could use."""

    reason = "agent-card-invalid"


def rewritten(card: bytes, *, registered_url: str, rpc_url: str) -> bytes:
    """The card, with the gateway's `rpc_url` as the address of all its interfaces. Raises `AgentCardInvalid`.

    Kept are JSON-RPC interfaces, and of these the ones at the path that calls are forwarded to, if the card names it.
    Signatures go: they are about the card as it was.
    """
    try:
        found = from_json(card, allow_inf_nan=False)
        if not isinstance(found, dict):
            raise AgentCardInvalid("The agent's card is no JSON object.")
        return to_json(_rewritten(found, urlsplit(registered_url).path, rpc_url))
    except (ValueError, TypeError, LookupError, AttributeError) as exc:
        raise AgentCardInvalid("The agent's card cannot be read: it is no JSON, or not shaped as a card.") from exc


def _rewritten(card: Json, path: str, rpc_url: str) -> Json:
    """Both shapes: a card may carry the fields of 0.3 and 1.0 at once."""
    main = {"url": card.get("url"), "transport": card.get("preferredTransport", JSON_RPC)}
    of_0_3 = [main, *(card.get("additionalInterfaces") or [])] if "url" in card else []
    kept_0_3 = _forwarded(of_0_3, "transport", path, rpc_url)
    kept_1_0 = _forwarded(card.get("supportedInterfaces") or [], "protocolBinding", path, rpc_url)
    if not kept_0_3 and not kept_1_0:
        raise AgentCardInvalid("The agent's card names no JSON-RPC interface, and no other is forwarded.")
    changed: Json = {"signatures": None, "url": None, "preferredTransport": None, "additionalInterfaces": None}
    if kept_0_3:
        changed |= {"url": rpc_url, "preferredTransport": JSON_RPC}
        if "additionalInterfaces" in card:
            changed["additionalInterfaces"] = kept_0_3
    if "supportedInterfaces" in card:
        changed["supportedInterfaces"] = kept_1_0 or None
    merged = {**card, **changed}
    return {name: value for name, value in merged.items() if name not in changed or value is not None}


def _forwarded(interfaces: Iterable[Json], binding: str, path: str, rpc_url: str) -> list[Json]:
    """Those that the gateway forwards, at its own address, none twice."""
    json_rpc = [each for each in interfaces if each.get(binding) == JSON_RPC]
    at_path = [each for each in json_rpc if urlsplit(each["url"]).path.rstrip("/") == path.rstrip("/")]
    kept: list[Json] = []
    for each in at_path or json_rpc:
        moved = {**each, "url": rpc_url}
        if moved not in kept:
            kept.append(moved)
    return kept
