"""The first API key of an installation, written to the database by whoever may write there anyway."""

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from api.http.requests import first_problem
from api.routes.keys import IssuedKeyAnswer, NewKeyRequest
from podium.cli.exits import ExitCode, Failure
from services.domain.caller import Caller
from services.identities.keys import create_key
from services.settings import Settings
from services.storage.database import Sessions, close_engine, in_transaction, make_engine

BOOTSTRAP = Caller(actor="bootstrap")


async def create_in_database(body: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Create the key as the API does; returns its answer. Raises `Failure`, and `PodiumError` as the API does."""
    url = variables.get("PODIUM_DATABASE_URL", "")
    if not url:
        raise Failure("--bootstrap needs the database: set PODIUM_DATABASE_URL.", ExitCode.USAGE)
    try:
        new = NewKeyRequest.model_validate(body).command()
    except ValidationError as error:
        raise Failure(first_problem(error).message, ExitCode.USAGE) from error
    engine = make_engine(Settings(database_url=SecretStr(url)), application_name="podium-keys", pool_size=1)
    try:
        issued = await in_transaction(Sessions(engine), lambda session: create_key(session, new, BOOTSTRAP))
    except SQLAlchemyError as error:
        message = "The key could not be stored: run 'podium migrate' with this version first."
        raise Failure(message, ExitCode.FAILED) from error
    finally:
        await close_engine(engine)
    answer: dict[str, Any] = IssuedKeyAnswer.of(issued).model_dump(mode="json")
    return answer
