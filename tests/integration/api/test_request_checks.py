"""Parts of a request that its route does not read are refused, on every route but RPC."""

import pytest

from tests.integration.api.client import Api
from tests.integration.api.pods import Pod
from tests.integration.api.test_conditions import LIMIT, operations


async def test_an_unknown_query_parameter(api: Api, subtests: pytest.Subtests) -> None:
    """G50: 400 with the name of the parameter on every route, also beside parameters that the route has."""
    for path, method, operation in operations((await api.get("/openapi.json")).json):
        if path.endswith("/rpc"):
            continue
        known = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
        target = path.replace("{", "").replace("}", "")
        with subtests.test(path=path, method=method):
            for query in ("limitt=5", f"{known[0]}=x&limitt=5" if known else "limitt=&limitt=5"):
                answer = await api.call(method, f"{target}?{query}", timeout=LIMIT)
                assert "limitt" in answer.problem(400, "invalid-request", "limitt")["detail"]
                assert all(name in answer.json["detail"] for name in known)


async def test_a_changing_route_with_an_unknown_query_parameter_changes_nothing(api: Api) -> None:
    """G50: a delete or promote with a misspelt parameter is not executed."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2")
    path = f"/agents/{agent['id']}"
    (await api.post(f"{path}/deployments/v2/promote?dry_run=1")).problem(400, "invalid-request", "dry_run")
    (await api.delete(f"{path}?if_generation=7")).problem(400, "invalid-request", "if_generation")
    assert (await api.get(path)).json["generation"] == 1


async def test_an_rpc_keeps_its_query(api: Api, pod: Pod) -> None:
    """The query of an RPC belongs to the agent and reaches it unchanged."""
    await api.register("bot", "v1", acp_url=pod.url)
    assert (await api.post("/agents/name/bot/rpc?any=thing&x", {"id": 1})).status == 200
    assert pod.seen[-1].target.endswith("?any=thing&x")
