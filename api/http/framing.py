"""Heads that the HTTP parser accepts, but that another program on the way could read differently.

Where two programs disagree about the end of a request or about its host, a caller can hide one request in another
(RFC 9112, sections 3.2, 6.1 and 11.2).
"""

from collections.abc import Iterable

_VERSIONS = frozenset({"1.0", "1.1"})


def is_ambiguous(version: str, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether to refuse a request with this head; the names of its headers are in lower case.

    It is ambiguous if its version, its host or the length of its body is, or if its target is not that of a resource.
    """
    hosts, codings = [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
    if version not in _VERSIONS or method == b"CONNECT" or b"#" in target:
        return True
    # HTTP/1.0 has no transfer codings, and nothing here decodes another one.
    if codings and (codings != [b"chunked"] or version == "1.0"):
        return True
    if len(hosts) != 1 and (hosts or version == "1.1"):
        return True
    return not target.startswith((b"/", b"*")) and (not hosts or _authority(target).lower() != hosts[0].lower())


def _authority(target: bytes) -> bytes:
    """The part of an absolute target that `Host` has to repeat."""
    return target.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
