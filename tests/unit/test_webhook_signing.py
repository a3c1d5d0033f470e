import asyncio
import time
from typing import Any

import pytest
from playwright._impl._driver import compute_driver_executable
from pydantic_core import to_json
from standardwebhooks import Webhook as Verifier

from services.webhooks.filters import KNOWN_TYPES, unknown_types
from services.webhooks.signing import new_secret, shown, signature_headers
from tests.support.documents import blocks
from tests.support.processes import ROOT

GUIDE = ROOT / "docs" / "webhooks.md"
BODY = b'{"text": "\xc3\xa4"}'
RUN_JAVASCRIPT = """
const [secret, headers, body] = JSON.parse(process.argv[1]);
console.log(isFromPodium(secret, headers, Buffer.from(body)));
"""


def signed(*secrets: bytes, at: float | None = None, body: bytes = BODY) -> dict[str, str]:
    """The headers of a delivery."""
    return signature_headers("an-id", int(time.time() if at is None else at), body, secrets)


def cases() -> list[tuple[str, dict[str, str], str, bool]]:
    """Secret, headers, body, and whether they belong together."""
    old, new, other = new_secret(), new_secret(), new_secret()
    text = BODY.decode()
    return [
        (shown(new), signed(new), text, True),
        (shown(new), signed(new, old), text, True),
        (shown(old), signed(new, old), text, True),
        (shown(other), signed(new, old), text, False),
        (shown(new), signed(new), text + " ", False),
        (shown(new), {**signed(new), "webhook-id": "another"}, text, False),
        (shown(new), signed(new, at=time.time() - 600), text, False),
        (shown(new), {**signed(new), "webhook-signature": "v1"}, text, False),
    ]


def test_a_signature_is_one_of_standard_webhooks() -> None:
    """G100: the library of the specification computes the same."""
    secret = new_secret()
    assert Verifier(shown(secret)).verify(BODY, signed(secret)) == {"text": "ä"}
    assert 24 <= len(secret) <= 64
    assert signed(secret, secret)["webhook-signature"].count("v1,") == 2


def test_the_python_that_the_guide_shows() -> None:
    """Whoever copies it accepts what Podium signs, and nothing else."""
    (code,) = blocks(GUIDE, "python")
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102 - the guide's own code
    for secret, headers, body, expected in cases():
        assert namespace["is_from_podium"](secret, headers, body.encode()) is expected, headers


async def test_the_javascript_that_the_guide_shows() -> None:
    """The same, with the Node.js that Playwright brings."""
    (code,) = blocks(GUIDE, "js")
    node = str(compute_driver_executable()[0])
    for secret, headers, body, expected in cases():
        arguments = to_json([secret, headers, body]).decode()
        process = await asyncio.create_subprocess_exec(
            *(node, "-e", code + RUN_JAVASCRIPT, arguments), stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        assert printed.decode().strip() == str(expected).lower(), headers


@pytest.mark.parametrize(
    ("wanted", "unknown"),
    [
        (KNOWN_TYPES, []),
        (["podium.", "podium.deployment.", "podium.webhook."], []),
        (["podium.deployment", "podium.deployment.promoted.v2", "podium.deploy.", "."], None),
    ],
)
def test_types_and_prefixes(wanted: list[str], unknown: list[str] | None) -> None:
    """A type that no event has, or a prefix of none, would never send anything."""
    assert unknown_types(wanted) == (list(wanted) if unknown is None else unknown)
