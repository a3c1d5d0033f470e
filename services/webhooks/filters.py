"""Which events a webhook gets: by exact types, or by prefixes that end with a dot."""

from collections.abc import Sequence

from contracts.events import EVENT_TYPES

PREFIX_MARK = "."
KNOWN_TYPES = tuple(EVENT_TYPES.values())

# Whether an event of this type and agent is for the webhook `w`. For an outbox row `o`.
WANTED = """(w.agent_id IS NULL OR w.agent_id = o.agent_id) AND (w.event_types IS NULL OR EXISTS (
        SELECT FROM unnest(w.event_types) AS wanted(type)
        WHERE o.type = wanted.type OR (wanted.type LIKE '%.' AND starts_with(o.type, wanted.type))))"""


def unknown_types(wanted: Sequence[str]) -> list[str]:
    """Those of these types and prefixes that no event of this version of Podium has."""
    return [
        each
        for each in wanted
        if not (
            each in KNOWN_TYPES or (each.endswith(PREFIX_MARK) and any(known.startswith(each) for known in KNOWN_TYPES))
        )
    ]
