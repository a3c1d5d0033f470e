"""The file of issuers and grants."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from api.auth.binding import StartRefused, read_issuers
from api.auth.oidc.grants import Grant
from services.settings import Settings

ISSUER = '[[issuer]]\nurl = "https://issuer.example"\naudience = "podium"\n'
GRANT = '[[issuer.grant]]\nclaims = { sub = "amy" }\nscopes = ["read"]\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "issuer"),
        ("[[issuer]", "not valid TOML"),
        (ISSUER, "issuer.0.grant"),
        (ISSUER + GRANT + ISSUER + GRANT, "once"),
        (ISSUER.replace("https", "http") + GRANT, "https://"),
        (ISSUER.replace("https://", "https://user@") + GRANT, "plain URL"),
        (ISSUER + 'algorithms = ["HS256"]\n' + GRANT, "algorithms"),
        (ISSUER + 'algorithms = ["none"]\n' + GRANT, "algorithms"),
        (ISSUER + "algorithms = []\n" + GRANT, "algorithms"),
        (ISSUER + "clock_skew_seconds = 3600\n" + GRANT, "clock_skew_seconds"),
        (ISSUER + 'keys_url = "http://issuer.example/keys"\n' + GRANT, "keys_url"),
        (ISSUER + "secret = 1\n" + GRANT, "secret"),
        (ISSUER + GRANT.replace('{ sub = "amy" }', "{}"), "claims"),
        (ISSUER + GRANT.replace('["read"]', '["root"]'), "scopes"),
        (ISSUER + GRANT.replace('["read"]', "[]"), "scopes"),
        (ISSUER + GRANT + 'agents = ["*"]\n', "agents"),
        (ISSUER + GRANT + 'actor = "{sub!r}"\n', "actor"),
        (ISSUER + GRANT + 'actor = "{sub"\n', "issuer.0.grant.0"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, says: str) -> None:
    """G76: the API refuses to start, and the message names the file and the field."""
    path = tmp_path / "grants.toml"
    path.write_text(content)
    with pytest.raises(StartRefused, match=r"grants\.toml") as refused:
        read_issuers(Settings(oidc_file=str(path)))
    assert says in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The API refuses to start."""
    with pytest.raises(StartRefused, match="cannot be read"):
        read_issuers(Settings(oidc_file=str(tmp_path / "none.toml")))


def test_the_file_makes_keys_required() -> None:
    """G76: with issuers, every request must send a key or a token."""
    assert Settings(oidc_file="grants.toml").keys_required
    assert not Settings(secret_key=SecretStr("s")).keys_required


@pytest.mark.parametrize(
    ("actor", "claims", "name"),
    [
        (None, {"sub": "u-1"}, "oidc:u-1"),
        (None, {"sub": "u-1", "email": "a@example.com", "email_verified": True}, "oidc:a@example.com"),
        (None, {"sub": "u-1", "email": "a@example.com", "email_verified": "true"}, "oidc:u-1"),
        ("{repository}@{ref}", {"sub": "s", "repository": "a/b", "ref": "main"}, "oidc:a/b@main"),
        ("{missing}x", {"sub": "s"}, "oidc:x"),
        (None, {"sub": "a\nb\x1b[31m"}, "oidc:a?b?[31m"),
        (None, {"sub": "s" * 300}, "oidc:" + "s" * 200),
    ],
)
def test_the_name_of_a_holder(actor: str | None, claims: dict[str, object], name: str) -> None:
    """G74: printable and short, whatever the token says."""
    assert Grant(claims={"sub": "*"}, scopes=["read"], actor=actor).actor_of(claims) == name
