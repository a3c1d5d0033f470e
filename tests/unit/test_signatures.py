from uuid import UUID

import pytest

from contracts.signatures import is_signature, signature
from services.registration.signatures import signing_key

KEY = "psk_2d0e0ec0f2a3f1c1e4b5d6a7988f7e6d5c4b3a291807f6e5d4c3b2a190817263"
ID = UUID("6f0c2d43-5a0c-4c27-9a2e-0a2b4f1f7a10")
BODY = b'{"name":"bot"}'
# printf '%s\n%s' "$ID" "$BODY" | openssl dgst -sha256 -hmac "$KEY"
SIGNATURE = "v1=1876cdaa8b22c1803d28b7965e8f9881b13e9eeaddea63965ce9a05fda8d4215"


def test_the_signature_is_the_published_one() -> None:
    """G78: What other languages compute from the description is what Podium computes."""
    assert signature(KEY, ID, BODY) == SIGNATURE
    assert is_signature(SIGNATURE, KEY, ID, BODY)


@pytest.mark.parametrize(
    "value", [None, 1, b"v1=", "", "v1=", SIGNATURE.upper(), SIGNATURE[:-1], f"{SIGNATURE}\n", f" {SIGNATURE}", "ü"]
)
def test_anything_else_is_no_signature(value: object) -> None:
    """Other types, other text and other forms of the right digest are refused without an exception."""
    assert not is_signature(value, KEY, ID, BODY)


def test_a_signature_is_for_one_key_one_id_and_one_body() -> None:
    """G78: It says nothing about another agent, another message or other bytes."""
    assert not is_signature(SIGNATURE, signing_key("secret", "bot"), ID, BODY)
    assert not is_signature(SIGNATURE, KEY, UUID(int=1), BODY)
    assert not is_signature(SIGNATURE, KEY, ID, BODY + b" ")


def test_signing_keys_depend_on_secret_and_name() -> None:
    """Each agent has a key of its own, always the same one."""
    assert signing_key("secret", "bot") == signing_key("secret", "bot")
    assert len({signing_key("secret", "bot"), signing_key("secret", "bot2"), signing_key("secret2", "bot")}) == 3
