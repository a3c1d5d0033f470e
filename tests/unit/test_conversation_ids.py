"""Ids of conversations in bodies: found where the protocols put them, and nowhere else."""

import json
from time import perf_counter
from typing import Any

import pytest

from api.gateway.conversation_ids import LOOKED_AT_BYTES, ids_of_answer, ids_of_call, needs_more


def call(method: str = "message/send", **params: Any) -> bytes:
    """The body of a call."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (call(message={"contextId": "c", "taskId": "t"}), [("context", b"c"), ("task", b"t")]),
        (call(contextId="c"), [("context", b"c")]),
        (call("tasks/get", id="t"), [("task", b"t")]),
        (call("GetTask", id="t"), [("task", b"t")]),
        (call("message/send", id="no task"), []),
        (call(message={"contextId": ""}), []),
        (call(message={"contextId": "c" * 257}), []),
        (call(message={"contextId": 7, "parts": [{"text": '"contextId": "not this"'}]}), []),
        (call(metadata={"contextId": "not this"}), []),
        (b"", []),
        (b"[1]", []),
        (b"\xff", []),
        (b'{"params": {"message": {"contextId": "whole", "text": "cut of', [("context", b"whole")]),
        (b'{"params": {"message": {"contextId": "cut of', []),
    ],
)
def test_ids_of_a2a_calls(body: bytes, found: list[tuple[str, bytes]]) -> None:
    """In the message or the parameters, the context first; a body that is cut off counts as far as it goes."""
    assert ids_of_call("a2a", body) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (call(task_id="t"), [("task", b"t")]),
        (call("task/cancel", task={"id": "t"}), [("task", b"t")]),
        (call(message={"contextId": "c"}), []),
    ],
)
def test_ids_of_acp_calls(body: bytes, found: list[tuple[str, bytes]]) -> None:
    """The task."""
    assert ids_of_call("acp", body) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"result": {"id": "t", "contextId": "c", "status": {}}}', [("context", b"c"), ("task", b"t")]),
        (b'{"result": {"task": {"id": "t", "contextId": "c", "status": {}}}}', [("context", b"c"), ("task", b"t")]),
        (b'{"result": {"message": {"contextId": "c"}}}', [("context", b"c")]),
        (
            b'data: {"result": {"statusUpdate": {"contextId": "c", "taskId": "t"}}}\n\n',
            [("context", b"c"), ("task", b"t")],
        ),
        (b': hi\r\nevent: x\r\ndata: {"result": {"contextId": "c"}}\r\n\r\n', [("context", b"c")]),
        (b'{"error": {"contextId": "c"}}', []),
        (b"hello", []),
    ],
)
def test_ids_of_a2a_answers(body: bytes, found: list[tuple[str, bytes]]) -> None:
    """In an object, or in the first events of a stream."""
    assert ids_of_answer("a2a", body) == found


def test_ids_of_acp_answers() -> None:
    """Of a task that was created, and in the lines of a stream."""
    assert ids_of_answer("acp", b'{"result": {"id": "t", "status": "RUNNING"}}') == [("task", b"t")]
    assert ids_of_answer("acp", b'{"result": {"type": "delta"}}\n{"result": {"task_id": "t"}}\n') == [("task", b"t")]


def test_how_much_of_an_answer_is_held_back() -> None:
    """An object until it ends or is too long; of a stream its first event or line."""
    assert needs_more(b"{}", "application/json")
    assert not needs_more(b"x" * LOOKED_AT_BYTES, "application/json")
    assert needs_more(b"data: {}\n", "text/event-stream")
    assert not needs_more(b"data: {}\n\n", "text/event-stream")
    assert needs_more(b"{}", "application/x-ndjson")
    assert not needs_more(b"{}\n", "application/x-ndjson")


@pytest.mark.parametrize("body", [b"[" * 10**6, b'{"a":' * 10**6, b'{"params": {"x": "' + b"x" * 4 * 10**6])
def test_hostile_bodies_cost_little(body: bytes) -> None:
    """However large and deep they are."""
    began = perf_counter()
    assert ids_of_call("a2a", body) == []
    assert perf_counter() - began < 0.1
