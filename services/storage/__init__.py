"""PostgreSQL: connections, transactions, tables, and the statements that read and write agents."""
