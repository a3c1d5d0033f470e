"""Messages on RabbitMQ byte by byte: properties, headers and routing keys that no client library would encode.

AMQP 0-9-1, section 4.2.5, with the field types that RabbitMQ accepts:
https://www.rabbitmq.com/docs/amqp-0-9-1-errata#section_3
"""

import struct
from collections.abc import Mapping

from aiormq import spec


class RawProperties(spec.Basic.Properties):
    """Properties as raw bytes, because the client library cannot encode them."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        super().__init__()
        # The values follow each other in the order of their flags, the highest first.
        names = sorted(values, key=lambda name: self.flags[name], reverse=True)
        self._raw = struct.pack(">H", sum(self.flags[name] for name in names)) + b"".join(
            values[name] for name in names
        )

    def marshal(self) -> bytes:
        """The raw bytes."""
        return self._raw


class RawKey(str):
    """A routing key of arbitrary bytes."""

    __slots__ = ("raw",)
    raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> "RawKey":
        """A key that is sent as these bytes."""
        key = cls(raw.decode(errors="replace"))
        key.raw = raw
        return key

    def encode(self, *_: str) -> bytes:
        """The raw bytes."""
        return bytes(self.raw)


def short_text(value: bytes) -> bytes:
    """A text of at most 255 bytes."""
    return bytes([len(value)]) + value


def long_text(value: bytes) -> bytes:
    """A text, or any other bytes, with a length of four bytes."""
    return struct.pack(">I", len(value)) + value


def table(fields: Mapping[bytes, bytes]) -> bytes:
    """A table of encoded values, each with the letter of its type in front."""
    return long_text(b"".join(short_text(name) + value for name, value in fields.items()))
