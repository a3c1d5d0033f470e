"""How values are written on pages: times with their zone, short ids, and links that are safe to follow."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlsplit

COLOURS = 8
# A longer path would repeat long names once for each value below them.
PATH_MAX = 200
NONE = "\N{EN DASH}"
_STEPS = ((60, "s", 1), (3600, "min", 60), (86_400, "h", 3600), (86_400 * 60, "d", 86_400))


def utc(moment: datetime | None) -> str:
    """`2026-11-26 12:04:31 UTC`; a dash for no time."""
    return NONE if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(moment: datetime) -> str:
    """The time for `<time datetime>`."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def ago(moment: datetime, now: datetime) -> str:
    """`3 min ago`, `in 2 h`."""
    seconds = (now - moment).total_seconds()
    words = lasting(timedelta(seconds=abs(seconds)))
    return "now" if abs(seconds) < 1 else f"{words} ago" if seconds > 0 else f"in {words}"


def lasting(duration: timedelta | None) -> str:
    """`40 s`, `3 min`, `5 h`, `12 d`; a dash for none."""
    if duration is None:
        return NONE
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, size in _STEPS:
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def seconds(value: float) -> str:
    """`40 ms`, `1.3 s`, `90 s`."""
    return lasting(timedelta(seconds=value)) if value < 1 or value >= 10 else f"{value:.1f} s"  # noqa: PLR2004 - more digits


def short(text: str | None, length: int = 24) -> str:
    """The text with its middle left out, if it is longer."""
    if text is None:
        return NONE
    return text if len(text) <= length else f"{text[: length - 9]}…{text[-8:]}"


def image_tag(image: str | None) -> str:
    """The last part of an image's name with its tag, or a shortened digest."""
    if not image:
        return "unknown image"
    name, _, digest = image.rpartition("/")[2].partition("@")
    return f"{name}@{digest.partition(':')[2][:12]}" if digest else short(name, 40)


def link(text: object) -> str | None:
    """The text if it is a complete address of a web page, http or https; None for anything else."""
    if not isinstance(text, str) or any(character <= " " for character in text):
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return text if parts.scheme in {"http", "https"} and parts.hostname else None


def plain(value: object) -> str:
    """A value of JSON as a person reads it. Control characters, also those that turn text around, are shown."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return "".join(each if each.isprintable() or each in "\n\t" else f"\\u{ord(each):04x}" for each in text)


def pretty(text: str) -> str:
    """JSON with line breaks; any other text as it is."""
    try:
        return plain(json.dumps(json.loads(text), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return plain(text)


def indented(value: object) -> str:
    """A value as JSON with line breaks."""
    return plain(json.dumps(value, indent=2, ensure_ascii=False))


def colour(text: str | None) -> int:
    """One of some colours, always the same for the same version."""
    return 0 if text is None else 1 + sha256(text.encode()).digest()[0] % COLOURS


def path_part(text: object) -> str:
    """A value as one part of a path."""
    return quote(str(text), safe="")


def facts(metadata: dict[str, Any] | None) -> dict[str, Any]:
    """The values in metadata by their path: `git.author`. Lists stay whole, and so do objects with too long paths."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", metadata or {})]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value and (not path or is_path(path, value)):
            waiting += [(f"{path}.{name}" if path else str(name), each) for name, each in value.items()]
        elif path:
            found[path] = value
    return dict(sorted(found.items()))


def is_path(path: str, names: Iterable[str]) -> bool:
    """Whether each of these names can be added to the path, and it is still short."""
    return len(path) + 2 + max(map(len, names)) <= PATH_MAX


def fact(metadata: dict[str, Any] | None, *names: str) -> str | None:
    """The first of these facts that is a text, wherever it is in the metadata."""
    by_name = {path.rpartition(".")[2].lower(): value for path, value in facts(metadata).items()}
    return next((value for name in names if isinstance(value := by_name.get(name), str) and value), None)


FILTERS = {
    "utc": utc,
    "iso": iso,
    "ago": ago,
    "lasting": lasting,
    "seconds": seconds,
    "short": short,
    "image_tag": image_tag,
    "link": link,
    "plain": plain,
    "pretty": pretty,
    "colour": colour,
    "part": path_part,
    "tojson_plain": indented,
}
