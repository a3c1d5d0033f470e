"""Tokens of OpenID Connect issuers: which are accepted, and what their holders may do."""

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import time
from typing import Any

import pytest
import pytest_asyncio
from joserfc.jwk import OctKey

from api.auth.oidc import issuer_keys
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.issuers import Issuer, a_signing_key, running_issuer
from tests.integration.api.pods import Pod
from tests.support.factories import a_body

GRANTS = """
[[issuer]]
url = "{url}"
audience = "podium"

[[issuer.grant]]
claims = {{ repository = "acme/support-bot", ref = "refs/heads/main" }}
scopes = ["register", "promote", "read"]
agents = ["support-bot"]
actor = "{{repository}}@{{ref}}"

[[issuer.grant]]
claims = {{ groups = "operators" }}
scopes = ["admin"]

[[issuer.grant]]
claims = {{ sub = "system:serviceaccount:agents:*" }}
scopes = ["invoke", "read"]
"""
OPERATOR: dict[str, Any] = {"groups": ["staff", "operators"], "email": "alice@example.com", "email_verified": True}


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """A running issuer."""
    async with running_issuer() as issuer:
        yield issuer


@pytest_asyncio.fixture
async def api(serve: Serve, issuer: Issuer, tmp_path: Path) -> Api:
    """An API that accepts its tokens."""
    path = tmp_path / "grants.toml"
    path.write_text(GRANTS.format(url=issuer.url))
    return await serve(oidc_file=str(path), auth_failures_per_minute=1000)


def bearer(token: str) -> dict[str, str]:
    """The header with this token."""
    return {"authorization": f"Bearer {token}"}


async def test_what_the_holder_of_a_token_may_do(api: Api, issuer: Issuer, pod: Pod) -> None:
    """G76: the first grant that matches the claims says which scopes and agents, and the ledger names the holder."""
    pipeline = bearer(issuer.token(repository="acme/support-bot", ref="refs/heads/main"))
    for version in ("v1", "v2"):
        body = a_body("support-bot", deployment_id=version, acp_url=pod.url)
        agent = (await api.post("/agents/register", body, headers=pipeline)).json
    path = f"/agents/{agent['id']}"
    assert (await api.post(f"{path}/deployments/v2/promote", headers=pipeline)).status == 200
    ledger = (await api.get(f"{path}/promotions", headers=pipeline)).json
    assert ledger[0]["actor"] == "oidc:acme/support-bot@refs/heads/main"
    (await api.post("/agents/register", a_body("other"), headers=pipeline)).problem(404, "agent-not-found")
    (await api.delete(path, headers=pipeline)).problem(403, "insufficient-scope")

    caller = bearer(issuer.token(sub="system:serviceaccount:agents:web"))
    assert (await api.post("/agents/name/support-bot/rpc", {"id": 1}, headers=caller)).status == 200
    (await api.post(f"{path}/rollback", headers=caller)).problem(403, "insufficient-scope")
    assert not pod.seen[-1].header("authorization")

    operator = bearer(issuer.token(**OPERATOR))
    assert (await api.delete(path, headers=operator)).status == 200
    assert (await api.get("/audit", headers=operator)).json[0]["actor"] == "oidc:alice@example.com"
    unverified = bearer(issuer.token(**{**OPERATOR, "email_verified": False}, sub="u-17"))
    assert (await api.post("/keys", {"name": "k", "scopes": ["read"]}, headers=unverified)).json[
        "created_by"
    ] == "oidc:u-17"


WITHOUT_GRANT: list[dict[str, Any]] = [
    {"repository": "acme/support-bot", "ref": "refs/heads/mainline"},
    {"repository": "acme/support-bot"},
    {"repository": ["x"], "ref": "refs/heads/main"},
    {"groups": "operators2"},
    {"groups": {"operators": True}},
    {"sub": "system:serviceaccount:other:web"},
    {},
]


async def test_a_valid_token_without_a_grant(api: Api, issuer: Issuer) -> None:
    """G76: 403, whatever the route."""
    for claims in WITHOUT_GRANT:
        headers = bearer(issuer.token(**claims))
        (await api.get("/agents", headers=headers)).problem(403, "no-grant")
        (await api.post("/agents/name/bot/rpc", {"id": 1}, headers=headers)).rpc_error(403, "no-grant")


def _unsigned(issuer: Issuer) -> str:
    header, payload, _ = issuer.token(**OPERATOR).split(".")
    nothing = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "first"}).encode()).decode().rstrip("=")
    assert header != nothing
    return f"{nothing}.{payload}."


def _signed_with_the_public_key(issuer: Issuer) -> str:
    """A symmetric signature, with what everybody knows as the secret."""
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "first"}).encode()).decode().rstrip("=")
    signed = f"{header}.{issuer.token(**OPERATOR).split('.')[1]}"
    digest = hmac.digest(issuer.keys[0].as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _changed(issuer: Issuer) -> str:
    header, _, signature = issuer.token(sub="nobody").split(".")
    return f"{header}.{issuer.token(**OPERATOR).split('.')[1]}.{signature}"


BAD_TOKENS: dict[str, Callable[[Issuer], str]] = {
    "for somebody else": lambda issuer: issuer.token(**OPERATOR, aud="another"),
    "for nobody": lambda issuer: issuer.token(**OPERATOR, aud=None),
    "past its end": lambda issuer: issuer.token(**OPERATOR, exp=int(time()) - 31),
    "without an end": lambda issuer: issuer.token(**OPERATOR, exp=None),
    "not yet valid": lambda issuer: issuer.token(**OPERATOR, nbf=int(time()) + 60),
    "of the future": lambda issuer: issuer.token(**OPERATOR, iat=int(time()) + 600),
    "without a subject": lambda issuer: issuer.token(**OPERATOR, sub=None),
    "with another key": lambda issuer: issuer.token(key=a_signing_key("first"), **OPERATOR),
    "with an unknown key": lambda issuer: issuer.token(key=a_signing_key("unknown"), **OPERATOR),
    "with an algorithm that is not listed": lambda issuer: issuer.token(header={"alg": "RS512"}, **OPERATOR),
    "with a critical header": lambda issuer: issuer.token(**OPERATOR).replace(
        issuer.token(**OPERATOR).split(".")[0],
        base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"first","crit":["x"],"x":1}').decode().rstrip("="),
    ),
    "unsigned": _unsigned,
    "signed with the public key": _signed_with_the_public_key,
    "changed": _changed,
    "cut": lambda issuer: issuer.token(**OPERATOR)[:-8],
    "of another issuer": lambda issuer: issuer.token(**OPERATOR, iss="https://issuer.example"),
    "of a similar issuer": lambda issuer: issuer.token(**OPERATOR, iss=f"{issuer.url}/"),
    "of no issuer": lambda issuer: issuer.token(**OPERATOR, iss=None),
    "no token": lambda _: "a.b.c",
    "with a header that is no object": lambda issuer: f"W10.{issuer.token(**OPERATOR).split('.', 1)[1]}",
    "long": lambda issuer: issuer.token(**OPERATOR, padding="x" * 20_000),
}


async def test_tokens_that_are_not_valid(api: Api, issuer: Issuer) -> None:
    """G76: 401, also after a valid token of the same holder."""
    assert (await api.get("/agents", headers=bearer(issuer.token(**OPERATOR)))).status == 200
    for what, bad in BAD_TOKENS.items():
        token = bad(issuer)
        for _ in range(2):
            assert (await api.get("/agents", headers=bearer(token))).status == 401, what


async def test_a_token_within_the_clock_skew(api: Api, issuer: Issuer) -> None:
    """G76: clocks may differ by the seconds in the file."""
    now = int(time())
    skewed: list[dict[str, Any]] = [{"exp": now - 20}, {"nbf": now + 20}, {"iat": now + 20}]
    for claims in skewed:
        assert (await api.get("/agents", headers=bearer(issuer.token(**OPERATOR, **claims)))).status == 200


async def test_an_issuer_that_changes_its_keys(api: Api, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """G76: a token with a new key is accepted; one with a key that is gone is not, after a short time."""
    monkeypatch.setattr(issuer_keys, "RETRY_SECONDS", 0.0)
    old = issuer.token(**OPERATOR)
    assert (await api.get("/agents", headers=bearer(old))).status == 200
    assert issuer.fetches == 1
    issuer.keys = [a_signing_key("second")]
    assert (await api.get("/agents", headers=bearer(issuer.token(**OPERATOR)))).status == 200
    assert issuer.fetches == 2
    forged = issuer.token(key=issuer.keys[0], header={"kid": "first"}, **OPERATOR)
    (await api.get("/agents", headers=bearer(forged))).problem(401, "unauthorized")


async def test_unknown_keys_do_not_have_the_issuer_asked_each_time(api: Api, issuer: Issuer) -> None:
    """G76: whoever makes up key ids causes one fetch in ten seconds."""
    assert (await api.get("/agents", headers=bearer(issuer.token(**OPERATOR)))).status == 200
    for number in range(20):
        token = issuer.token(key=a_signing_key(f"unknown-{number}"), **OPERATOR)
        assert (await api.get("/agents", headers=bearer(token))).status == 401
    assert issuer.fetches <= 2


async def test_an_issuer_that_is_away(api: Api, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """G76: 503 while its keys were never fetched; once they are known, tokens are accepted without it."""
    monkeypatch.setattr(issuer_keys, "RETRY_SECONDS", 0.0)
    issuer.away = True
    headers = bearer(issuer.token(**OPERATOR))
    refused = await api.get("/agents", headers=headers)
    refused.problem(503, "issuer-unavailable")
    assert refused.headers["retry-after"]
    issuer.away = False
    assert (await api.get("/agents", headers=headers)).status == 200
    issuer.away = True
    monkeypatch.setattr(issuer_keys, "FRESH_SECONDS", 0.0)
    assert (await api.get("/agents", headers=bearer(issuer.token(**OPERATOR, jti="2")))).status == 200
    monkeypatch.setattr(issuer_keys, "USABLE_SECONDS", 0.0)
    late = bearer(issuer.token(**OPERATOR, jti="3"))
    (await api.get("/agents", headers=late)).problem(503, "issuer-unavailable")


async def test_odd_keys_of_an_issuer_are_passed_over(api: Api, issuer: Issuer) -> None:
    """G76: keys for encryption, shared secrets and kinds that nobody knows; and a token without a key id is tried."""
    secret = OctKey.import_key(b"x" * 32)
    issuer.published = [
        {"kty": "NEW", "kid": "odd"},
        "no key",
        {"kty": "RSA", "kid": "broken"},
        {**secret.as_dict(private=True), "kid": "secret"},
        {**a_signing_key("enc").as_dict(private=False), "use": "enc"},
    ]
    assert (await api.get("/agents", headers=bearer(issuer.token(**OPERATOR)))).status == 200
    without_id = issuer.token(header={"kid": None}, **OPERATOR)
    assert (await api.get("/agents", headers=bearer(without_id))).status == 200
    forged = issuer.token(key=secret, header={"kid": "secret"}, **OPERATOR)
    (await api.get("/agents", headers=bearer(forged))).problem(401, "unauthorized")
