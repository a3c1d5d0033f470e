"""Announcements and goodbyes, mutated at random: in structure, text, size, properties, headers and routing key."""

import json
import random
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from contracts.messages import REGISTRATION_MAX_BYTES
from tests.support.amqp_wire import long_text, short_text, table
from tests.support.factories import a_body

AGENTS = 20
DEPLOYMENTS = 8
INSTANCES = 4
LARGE_BYTES = 300_000
DEEP = 5_000
# As many as go into one message of the broker's own limit on a header frame.
MANY_HEADERS = 300

JSON_TEXTS = (
    "NaN",
    "-Infinity",
    "1e999",
    "-0",
    "9" * 5_000,
    "1e-9999",
    "18446744073709551616",
    "1.0000000000000000000000001",
    r'"\ud800"',
    r'"\udfff\ud800"',
    r'"\u0000"',
    r'"\u202e\u2066\u200b"',
    r'"\x"',
    '"' + "\\\\" * 3_000 + '"',
    "'single'",
    "undefined",
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" * 31 + "]" * 31,
    "[" * 40 + "]" * 40,
    '{"":{"":{"":0}}}',
    '{"a":1,"a":2}',
    "[1,]",
    "/* */1",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    0.1,
    "",
    " ",
    "\x00",
    "\x1b[2J\x1b]8;;http://evil.test\x07link\x1b]8;;\x07",
    "\r\naction=forged",
    "\u202eevil\u2066",
    "[bold]x[/bold][link=http://evil.test]y[/link]",
    "<script>alert(1)</script>",
    "\U0001f9ff" * 50,
    "x" * 3_000,
    "2026-07-01T12:00:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    1_764_000_000,
    "1764000000.5",
    "00000000-0000-0000-0000-000000000000",
    "urn:uuid:00000000-0000-4000-8000-000000000001",
    "{00000000-0000-4000-8000-000000000002}",
    "http://[::ffff:127.0.0.1]:1",
    "http://a@b",
    "http://10.0.0.7:99999",
    "ftp://10.0.0.7",
    "../../etc/passwd",
    "bot-0",
    "deregister",
    [],
    {},
    [[]],
    {"a": {"b": [None, {"c": "\ud800"}]}},
    [1] * 500,
)
# How Python encodes a body. The last one keeps lone surrogates, which the others cannot encode.
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "cp1252", "utf-7", "cp037")


@dataclass(frozen=True)
class Mutant:
    """One message as its publisher sends it."""

    body: bytes
    key: bytes
    properties: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_bold(self) -> bool:
        """Whether the broker may refuse it and close the connection."""
        return bool(self.properties)


class Mutants:
    """Makes mutants, the same ones for the same seed, but for their times."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._sent: list[Mutant] = []

    def next(self) -> Mutant:
        """The next mutant: sometimes one that was made before, or a valid message."""
        rng = self._rng
        if self._sent and rng.random() < 0.03:
            return rng.choice(self._sent)
        content = self._content()
        key = b"agent." + content["name"].encode()
        body = self._body(content)
        properties = self._properties() if rng.random() < 0.35 else {}
        if rng.random() < 0.1:
            key = self._key()
        mutant = Mutant(body, key, properties)
        self._sent.append(mutant)
        return mutant

    def _content(self) -> dict[str, Any]:
        rng = self._rng
        name = f"bot-{rng.randrange(AGENTS)}"
        time = datetime.now(UTC) + timedelta(seconds=rng.choice((-3600.0, -60.0, -1.0, 0.0, 20.0, 7200.0)))
        content = a_body(
            name,
            deployment_id=rng.choice((None, f"{name}.{rng.randrange(DEPLOYMENTS)}", f"bot-1.{rng.randrange(3)}")),
            docker_image=rng.choice((None, None, f"image:{rng.randrange(3)}")),
            description=rng.choice((None, "A bot.")),
            message_id=str(UUID(int=rng.getrandbits(128), version=4)),
            registered_at=time.isoformat(),
        )
        metadata = content.get("registration_metadata", {})
        if "deployment_id" in metadata and rng.random() < 0.3:
            metadata["instance_id"] = f"pod-{rng.randrange(INSTANCES)}"
        if "instance_id" in metadata and rng.random() < 0.3:
            return {
                "kind": "deregister",
                "name": name,
                "deployment_id": metadata["deployment_id"],
                "instance_id": metadata["instance_id"],
                "message_id": content["message_id"],
                "registered_at": content["registered_at"],
            }
        return content

    def _body(self, content: dict[str, Any]) -> bytes:
        kind = self._rng.random()
        if kind < 0.15:
            return json.dumps(content).encode()
        if kind < 0.6:
            for _ in range(self._rng.choice((1, 1, 2, 4))):
                self._change_structure(content)
            return json.dumps(content).encode()
        if kind < 0.75:
            return self._with_odd_text(content)
        if kind < 0.93:
            return self._changed_bytes(json.dumps(content).encode())
        if kind < 0.97:
            return self._sized(content)
        return self._rng.choice((b"", b"null", b"[]", b"{}", b"\x00", b"\xff\xfe", self._rng.randbytes(200)))

    def _change_structure(self, content: dict[str, Any]) -> None:
        """Drop, replace, add or rename a field, of the message or of its metadata."""
        rng = self._rng
        metadata = content.get("registration_metadata")
        target = metadata if isinstance(metadata, dict) and rng.random() < 0.5 else content
        name = rng.choice([*target, "deployment_id", "docker_image", "unknown"])
        change = rng.randrange(5)
        if change == 0:
            target.pop(name, None)
        elif change == 1:
            target[rng.choice(("", "\x00", "\ud800", "__proto__", "kind", "x" * 300, name.upper()))] = target.pop(
                name, 1
            )
        elif change == 2 and len(content) > 1:
            other = rng.choice(list(content))
            target[name] = deepcopy(content[other])
        else:
            target[name] = deepcopy(rng.choice(VALUES))

    def _with_odd_text(self, content: dict[str, Any]) -> bytes:
        """A JSON text in place of a value, such as Python's encoder would not write."""
        marker = "3f9c-here"
        target = content.setdefault("registration_metadata", {}) if self._rng.random() < 0.7 else content
        target[self._rng.choice([*target, "unknown"])] = marker
        return json.dumps(content).replace(f'"{marker}"', self._rng.choice(JSON_TEXTS)).encode()

    def _changed_bytes(self, body: bytes) -> bytes:
        rng = self._rng
        place = rng.randrange(len(body))
        changes: tuple[Callable[[], bytes], ...] = (
            lambda: body[:place],
            lambda: body[:place] + rng.randbytes(rng.randint(1, 4)) + body[place:],
            lambda: body[:place] + bytes([body[place] ^ 1 << rng.randrange(8)]) + body[place + 1 :],
            lambda: body[:place] + body[place + rng.randint(1, 20) :],
            lambda: body + rng.choice((b"\x00", b"}", b"\n", b" " * 50, body)),
            lambda: body.decode().encode(rng.choice(ENCODINGS)),
            lambda: body.replace(b":", b" :\r\n\t"),
            lambda: body.replace(b"bot", rng.choice((b"b\xc3\xb6t", b"b\xff", b"b\\u0000", b"\xed\xa0\x80"))),
        )
        return rng.choice(changes)()

    def _sized(self, content: dict[str, Any]) -> bytes:
        """A body at the limit, or far beyond it."""
        size = self._rng.choice((REGISTRATION_MAX_BYTES, REGISTRATION_MAX_BYTES + 1, LARGE_BYTES))
        content["description"] = ""
        content["description"] = "x" * (size - len(json.dumps(content)))
        return json.dumps(content).encode()

    def _key(self) -> bytes:
        rng = self._rng
        word = rng.choice(
            (
                b"",
                b"*",
                b"#",
                b"\xff\xfe",
                b"\x00",
                b"BOT",
                b"bot-0\r\n",
                b"\x1b[31m",
                b"x" * 249,
                b"bot-%d" % rng.randrange(AGENTS),
            )
        )
        return b"agent." + word

    def _properties(self) -> dict[str, bytes]:
        rng = self._rng
        texts = (
            b"",
            b"gzip",
            b"application/json",
            b"\x00",
            b"\xff\xfe",
            b"x" * 255,
            b"\x1b[2J",
            b"\r\n",
            b"amq.rabbitmq.reply-to.g1",
        )
        made: dict[str, Callable[[], bytes]] = {
            **{
                name: lambda: short_text(rng.choice(texts))
                for name in (
                    "content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "message_type",
                    "app_id", "cluster_id",
                )
            },
            "delivery_mode": lambda: rng.choice((b"\x00", b"\x01", b"\x02", b"\xff")),
            "priority": lambda: bytes([rng.randrange(256)]),
            "timestamp": lambda: struct.pack(">Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))),
            "expiration": lambda: short_text(rng.choice((b"0", b"1", b"60000", b"-1", b"abc", b""))),
            "user_id": lambda: short_text(rng.choice((b"guest", b"nobody", b"\xff"))),
            "headers": self._headers,
        }  # fmt: skip
        names = rng.sample(sorted(made), rng.randint(1, 4))
        if "headers" not in names and rng.random() < 0.5:
            names.append("headers")
        return {name: made[name]() for name in names}

    def _headers(self) -> bytes:
        rng = self._rng
        names = (
            b"x-death", b"x-delivery-count", b"x-podium-retry-of", b"traceparent", b"CC", b"BCC", b"x-match",
            b"x-first-death-reason", b"x-podium-left-out", b"", b"\xff\xfe", b"\x00", b"x" * 128, b"\x1b[2J",
        )  # fmt: skip
        if rng.random() < 0.05:
            return table({b"h%d" % number: self._field(1) for number in range(MANY_HEADERS)})
        return table({rng.choice(names): self._field(rng.randint(0, 4)) for _ in range(rng.randint(0, 5))})

    def _field(self, levels: int) -> bytes:
        """A value of a random type, with the letter of the type in front."""
        rng = self._rng
        texts = (b"", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"\x00", b"\xff", b"\x1b]0;t\x07", b"y" * 2_000)
        simple: tuple[Callable[[], bytes], ...] = (
            lambda: b"t" + rng.randbytes(1),
            lambda: b"b" + rng.randbytes(1),
            lambda: b"B" + rng.randbytes(1),
            lambda: b"s" + rng.randbytes(2),
            lambda: b"u" + rng.randbytes(2),
            lambda: b"I" + rng.randbytes(4),
            lambda: b"i" + rng.randbytes(4),
            lambda: b"l" + rng.randbytes(8),
            lambda: b"f" + rng.choice((rng.randbytes(4), struct.pack(">f", float("nan")))),
            lambda: b"d" + rng.choice((rng.randbytes(8), struct.pack(">d", float("inf")))),
            lambda: b"D" + rng.randbytes(5),
            lambda: b"S" + long_text(rng.choice(texts)),
            lambda: b"x" + long_text(rng.randbytes(rng.randrange(40))),
            lambda: b"T" + rng.choice((rng.randbytes(8), struct.pack(">Q", 1_764_000_000))),
            lambda: b"V",
        )
        if levels and rng.random() < 0.4:
            if rng.random() < 0.5:
                return b"A" + long_text(b"".join(self._field(levels - 1) for _ in range(rng.randrange(4))))
            return b"F" + table({b"k%d" % number: self._field(levels - 1) for number in range(rng.randrange(4))})
        return rng.choice(simple)()
