"""The RabbitMQ side: the registrar turns messages into state, the relay turns the outbox into events."""
