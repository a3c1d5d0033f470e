"""RabbitMQ: connections, decoding, topology, and messages between delivery and decision."""
