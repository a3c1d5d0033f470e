"""The order of message ids decides which of several registrations at the same time wins."""

from uuid import RFC_4122

from services.registration.ordered_ids import OrderedIds


def test_ids_increase() -> None:
    """As UUIDs, and byte by byte, as PostgreSQL compares them."""
    source = OrderedIds()
    ids = [source.next() for _ in range(10_000)]
    assert ids == sorted(ids, key=lambda each: each.bytes)
    assert len(set(ids)) == len(ids)
    assert {(each.variant, each.version) for each in ids} == {(RFC_4122, 8)}
