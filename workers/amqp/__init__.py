"""RabbitMQ: connections, decoding of properties, the delivery buffer, and the declared topology."""
