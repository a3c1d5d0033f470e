"""Event epochs: positions of events stay comparable after a backup was restored into another database cluster.

The position of an event among all events begins with the id of its transaction. Each PostgreSQL cluster counts these
ids from its own start, so after a restore into another cluster the ids in the backup can be greater than the ids to
come. Each cluster that has held the data is therefore one epoch, and positions of a later epoch are greater than all
positions of earlier epochs. A cursor of an earlier epoch gets 410: the events that the earlier cluster wrote after the
backup are lost, so the reader must read the current state again.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# An arbitrary number: only one process at a time begins an epoch.
_LOCK = text("SELECT pg_advisory_xact_lock(7310868735960148825)")
_MAY_IDENTIFY = text("SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
_IDENTIFIER = text("SELECT system_identifier FROM pg_catalog.pg_control_system()")
_NEWEST = text("SELECT epoch, system_identifier FROM event_epochs ORDER BY epoch DESC LIMIT 1")
# No transaction id that this cluster has assigned is as great as the next one.
_HAS_FOREIGN_IDS = text("""
SELECT EXISTS (SELECT FROM outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
    OR EXISTS (SELECT FROM outbox_low_water WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
""")
_BEGIN = text("INSERT INTO event_epochs (epoch, system_identifier) VALUES (:epoch, :identifier)")
# Less than every transaction id that a cluster assigns (the first one is 3). Rows with the same transaction id are
# ordered by their own id, which follows the sequence of each agent.
_MOVE_OUTBOX = text("UPDATE outbox SET xid = '2' WHERE xid <> '2'")
_MOVE_LOW_WATER = text("UPDATE outbox_low_water SET xid = '2' WHERE xid <> '2'")
# Before the events are moved: from now on their ids alone order them, so a webhook goes on with the least id of those
# that it has not got. It may get some events again.
_MOVE_WEBHOOKS = text("""
UPDATE webhooks AS w SET cursor_xid = '2', cursor_id = coalesce(
    (SELECT min(o.id) - 1 FROM outbox AS o WHERE (o.xid, o.id) > (w.cursor_xid, w.cursor_id)),
    (SELECT max(o.id) FROM outbox AS o), 0)
""")


async def adopt_cluster(connection: AsyncConnection) -> bool:
    """Begin a new epoch if the database has come from another cluster since the last call; whether it has.

    Runs in the caller's transaction. The events in the backup keep their order and precede all new ones.
    """
    await connection.execute(_LOCK)
    identifier: int | None = None
    if await connection.scalar(_MAY_IDENTIFY):
        identifier = await connection.scalar(_IDENTIFIER)
    newest = (await connection.execute(_NEWEST)).one_or_none()
    foreign = bool(await connection.scalar(_HAS_FOREIGN_IDS))
    if newest is None and not foreign:
        await connection.execute(_BEGIN, {"epoch": 0, "identifier": identifier})
        return False
    known = newest.system_identifier if newest is not None else None
    moved = identifier is not None and known is not None and identifier != known
    if not (moved or foreign):
        return False
    await connection.execute(_BEGIN, {"epoch": newest.epoch + 1 if newest is not None else 1, "identifier": identifier})
    await connection.execute(_MOVE_WEBHOOKS)
    await connection.execute(_MOVE_OUTBOX)
    await connection.execute(_MOVE_LOW_WATER)
    return True
