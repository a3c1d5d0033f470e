"""PostgreSQL and RabbitMQ for this machine: found or installed, started privately, and gone when we are."""
