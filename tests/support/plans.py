"""The plans of statements that are prepared once."""

from services.storage.driver import PreparedConnection


async def explained(connection: PreparedConnection, number: int, parameters: str, options: str = "") -> str:
    """The plan of a statement of an open connection, for parameters as SQL, such as `'{}', '{}'`."""
    statements, driver = connection._statements, connection._connection
    assert statements is not None
    prefix = f"({options}) " if options else ""
    rows = await driver.fetch(f"EXPLAIN {prefix}EXECUTE {statements[number].get_name()}({parameters})")
    return "\n".join(row[0] for row in rows)
