"""Least privilege on the servers: users of RabbitMQ and roles of PostgreSQL, each with what its programs need."""
