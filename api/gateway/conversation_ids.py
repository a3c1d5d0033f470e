"""Ids of conversations in bodies, for agents that opted in: A2A `contextId` and `taskId`, and ACP `task_id`.

Only the beginning of a body is parsed, as far as it goes, and no byte is changed. A body that is no JSON has no ids.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic_core import from_json

from services.domain.state import ConversationKeys
from services.routing.conversations import Kind

# An id that comes later in a body is not found.
LOOKED_AT_BYTES = 64 * 1024
ID_MAX_LENGTH = 256

# A key, and what it is.
Found = tuple[Kind, bytes]

_EVENT_END = (b"\n\n", b"\r\n\r\n", b"\r\r")
# Methods of A2A 0.3 and 1.0 whose `id` is that of a task.
_A2A_TASK_METHODS = ("tasks/", "GetTask", "CancelTask", "SubscribeToTask", "ListTaskPushNotification")


def ids_of_call(keys: ConversationKeys, body: bytes) -> list[Found]:
    """The ids in a call, the one that decides first."""
    call = _parsed(body)
    params = _object(call, "params")
    if keys == "acp":
        return _found(("task", [params.get("task_id"), _object(params, "task").get("id")]))
    message = _object(params, "message")
    tasks = [message.get("taskId"), params.get("taskId")]
    if str(call.get("method", "")).startswith(_A2A_TASK_METHODS):
        tasks.append(params.get("id"))
    return _found(("context", [message.get("contextId"), params.get("contextId")]), ("task", tasks))


def ids_of_answer(keys: ConversationKeys, body: bytes) -> list[Found]:
    """The ids in the beginning of an answer: an object, a line of NDJSON, or the first events of an event stream."""
    for part in _parts(body):
        result = _object(_parsed(part), "result")
        if keys == "acp":
            task = result.get("task_id") or _object(result, "task").get("id")
            found = _found(("task", [task, result.get("id") if "status" in result else None]))
        else:
            inner = [result, *(_object(result, name) for name in ("task", "message", "statusUpdate", "artifactUpdate"))]
            tasks = [each.get("taskId") for each in inner] + [each.get("id") for each in inner if "status" in each]
            found = _found(("context", [each.get("contextId") for each in inner]), ("task", tasks))
        if found:
            return found
    return []


def needs_more(body: bytes, content_type: str) -> bool:
    """Whether the ids of an answer may be in bytes that have not arrived: its first part is not complete."""
    if len(body) >= LOOKED_AT_BYTES:
        return False
    if content_type == "text/event-stream":
        return not any(end in body for end in _EVENT_END)
    if content_type in {"application/x-ndjson", "application/jsonl"}:
        return b"\n" not in body
    return True


def _parts(body: bytes) -> Iterator[bytes]:
    start = body[:LOOKED_AT_BYTES]
    if start.lstrip()[:1] == b"{":
        yield from (start.splitlines() if b"}\n{" in start else [start])
        return
    yield from (line[len(b"data:") :] for line in start.splitlines() if line.startswith(b"data:"))


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = from_json(body[:LOOKED_AT_BYTES], allow_partial=True)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _object(outer: dict[str, Any], name: str) -> dict[str, Any]:
    inner = outer.get(name)
    return inner if isinstance(inner, dict) else {}


def _found(*candidates: tuple[Literal["context", "task"], list[Any]]) -> list[Found]:
    found: list[Found] = []
    for kind, values in candidates:
        value = next((each for each in values if isinstance(each, str) and 0 < len(each) <= ID_MAX_LENGTH), None)
        if value is not None:
            found.append((kind, value.encode("utf-8", "surrogatepass")))
    return found
