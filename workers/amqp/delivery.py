"""A message as the broker delivered it to a consumer."""

from collections.abc import Mapping
from typing import Any, Self

from aiormq.abc import AbstractChannel, DeliveredMessage
from msgspec import Struct
from pamqp.commands import Basic


class Delivery(Struct, frozen=True, eq=False):
    """One delivery of a message. A redelivered message is another one."""

    channel: AbstractChannel
    tag: int
    redelivered: bool
    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    message_id: str | None
    correlation_id: str | None
    reply_to: str | None

    @classmethod
    def of(cls, message: DeliveredMessage) -> Self:
        """The delivery as the channel read it."""
        delivered, properties = message.delivery, message.header.properties
        assert isinstance(delivered, Basic.Deliver)
        return cls(
            channel=message.channel,
            tag=delivered.delivery_tag or 0,
            redelivered=bool(delivered.redelivered),
            routing_key=delivered.routing_key or "",
            body=message.body,
            headers=properties.headers or {},
            message_id=properties.message_id,
            correlation_id=properties.correlation_id,
            reply_to=properties.reply_to,
        )

    async def acknowledge(self, *, multiple: bool) -> None:
        """Tell the broker that the message is settled; with `multiple`, also all earlier ones of this channel.

        Raises `ChannelInvalidStateError` if the channel is closed.
        """
        await self.channel.basic_ack(self.tag, multiple=multiple)

    async def dead_letter(self) -> None:
        """Have the broker move the message to the queue of dead letters. Raises as `acknowledge`."""
        await self.channel.basic_reject(self.tag, requeue=False)
