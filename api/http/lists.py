"""Answers with lists, from rows of the database to JSON.

They are the bytes that the models of the answers become, but without an object for each row and each field.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from litestar import MediaType, Response
from pydantic import BaseModel

from api.http.responses import (
    UNKNOWN_IMAGE,
    AgentAnswer,
    DeploymentAnswer,
    PromotionAnswer,
    RegistrationAnswer,
)
from services.promotion.history import periods_of
from services.routing.draining import conversations_of
from services.storage.driver import Row

EMPTY = b"[]"


def json_response(body: bytes, headers: Mapping[str, str] | None = None) -> Response[Any]:
    """The response with this JSON."""
    return Response(body, headers=headers, media_type=MediaType.JSON)


def agents_page(rows: Sequence[Row]) -> tuple[str, bytes]:
    """The cursor of events, and the `AgentAnswer` of each row of `agents_question`."""
    cursor: str = rows[0]["cursor"]
    return cursor, msgspec.json.encode([_agent(row) for row in rows if row["id"] is not None])


def deployments_list(rows: Sequence[Row]) -> bytes:
    """The `DeploymentAnswer` of each row of `deployments_question`."""
    return msgspec.json.encode([_deployment(row) for row in rows])


def promotions_list(rows: Sequence[Row]) -> bytes:
    """The `PromotionAnswer` of each row of `history_question`."""
    return msgspec.json.encode([_promotion(row) for row in rows])


def registrations_list(rows: Sequence[Row]) -> bytes:
    """The `RegistrationAnswer` of each row of `registrations_question`."""
    return msgspec.json.encode([_registration(row) for row in rows])


def _deployment(row: Row) -> dict[str, Any]:
    answer = _columns_of_deployment(row)
    answer["docker_image"] = answer["docker_image"] or UNKNOWN_IMAGE
    answer["production_periods"] = [
        {"generation": period.generation, "since": period.since, "until": period.until}
        for period in periods_of(row["periods"])
    ]
    draining = conversations_of(row["draining"])
    if draining is not None:
        answer["draining"] = {
            "since": row["draining_since"],
            "open_conversations": draining.number,
            "until": draining.until,
        }
    return answer


def _promotion(row: Row) -> dict[str, Any]:
    answer = _columns_of_promotion(row)
    if answer["until"] is not None:
        answer["duration_seconds"] = (answer["until"] - answer["at"]).total_seconds()
    return answer


def _reader(answer: type[BaseModel], *computed: str, **columns: str) -> Callable[[Row], dict[str, Any]]:
    """A function for the fields of an answer in their order: from the columns named, and None for those computed."""
    empty = dict.fromkeys(answer.model_fields)
    names = [name for name in empty if name not in computed]
    values = itemgetter(*(columns.get(name, name) for name in names))
    return lambda row: {**empty, **dict(zip(names, values(row), strict=True))}


_agent = _reader(AgentAnswer, sequence="event_seq")
_registration = _reader(RegistrationAnswer)
_columns_of_deployment = _reader(DeploymentAnswer, "production_periods", "instances", "draining")
_columns_of_promotion = _reader(PromotionAnswer, "duration_seconds")
