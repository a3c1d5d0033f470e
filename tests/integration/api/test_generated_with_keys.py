"""Generated requests of every kind of caller: none gets a server error or an answer that is not documented."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.domain.identity import SCOPES
from tests.chaos.size import LONG, SIZE
from tests.integration.api.conftest import Serve
from tests.integration.api.generated import generated_requests
from tests.integration.api.pods import Pod
from tests.support.factories import a_body

ADMIN = {"x-api-key": "the-api-key"}
FOREIGN, NOBODY = "all scopes, for another agent", "nobody"
# The others in the long form alone: a run takes some seconds.
CALLERS = [NOBODY, *SCOPES, FOREIGN] if SIZE is LONG else [FOREIGN]
# Where a key is refused, a valid request is too. And of several keys in a request one must be valid, not all.
OPTIONS = ("--exclude-checks", "positive_data_acceptance,ignored_auth")
LONG_SECONDS = 600


@pytest.mark.timeout(LONG_SECONDS + 30)
@pytest.mark.parametrize("caller", CALLERS)
async def test_generated_requests_of(serve: Serve, pod: Pod, tmp_path: Path, caller: str) -> None:
    """G71: with each key and without one; stateful links too, in the long form."""
    api = await serve(api_key=SecretStr(ADMIN["x-api-key"]), auth_failures_per_minute=1_000_000)
    await api.post("/agents/register", a_body("bot", deployment_id="v1", acp_url=pod.url), headers=ADMIN)
    headers: list[str] = []
    if caller != NOBODY:
        scopes, agents = (list(SCOPES), ["other"]) if caller == FOREIGN else ([caller], None)
        body = {"name": "under-test", "scopes": scopes, "agents": agents}
        secret = (await api.post("/keys", body, headers=ADMIN)).json["secret"]
        headers = ["--header", f"x-api-key: {secret}"]
    size = (
        ("--phases", "coverage,fuzzing,stateful", "--max-examples", "20") if SIZE is LONG else ("--phases", "coverage")
    )
    report = await generated_requests(api, *OPTIONS, *headers, *size, folder=tmp_path, seconds=LONG_SECONDS)
    tested = re.search(r"(\d+) generated", report)
    assert tested is not None
    assert int(tested[1]) > 500
    assert (await api.get("/agents/name/bot", headers=ADMIN)).status == (200 if caller != "admin" else 404)
