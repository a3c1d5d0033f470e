"""What probes and Prometheus see."""

import asyncio
from uuid import uuid4

from pydantic import SecretStr

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import refused_address, silent_port


async def test_live_and_ready(api: Api) -> None:
    """200 for both with every part named."""
    assert (await api.get("/health/live")).status == 200
    ready = await api.get("/health/ready")
    assert ready.status == 200
    assert ready.json["status"] == "ready"
    assert ready.json["parts"]["database"]["ok"]
    assert ready.json["parts"]["broker"]["ok"]


async def test_ready_without_broker(serve: Serve) -> None:
    """The broker is the workers' concern: reported, with neither user nor password, and no more."""
    async with refused_address() as nowhere:
        amqp_url = SecretStr(nowhere.replace("http://", "amqp://user:secret@"))
        api = await serve(amqp_url=amqp_url)
        ready = await api.get("/health/ready")
    assert ready.status == 200
    assert ready.json["parts"]["broker"] == {"ok": False, "detail": "cannot be reached"}
    without = await serve(amqp_url=SecretStr(""))
    assert (await without.get("/health/ready")).json["parts"]["broker"]["detail"] == "not configured"


async def test_not_ready_without_database(serve: Serve) -> None:
    """503 that says which part is down; the process lives all the same."""
    async with refused_address() as nowhere:
        api = await serve(database_url=SecretStr(f"{nowhere.replace('http', 'postgresql')}/podium"))
        ready = await api.get("/health/ready")
        live = await api.get("/health/live")
    assert (ready.status, live.status) == (503, 200)
    assert ready.json["status"] == "not ready"
    assert ready.json["parts"]["database"] == {"ok": False, "detail": "cannot be reached"}
    assert ready.json["parts"]["broker"]["ok"]


async def test_a_database_that_does_not_answer(serve: Serve) -> None:
    """Not ready after two seconds, however long the database stays silent."""
    async with silent_port() as port:
        api = await serve(database_url=SecretStr(f"postgresql://u@127.0.0.1:{port}/podium"))
        async with asyncio.timeout(4):
            ready = await api.get("/health/ready")
    assert ready.status == 503
    assert ready.json["parts"]["database"]["detail"] == "no answer within 2 s"


async def test_metrics_by_route_and_never_by_path(api: Api) -> None:
    """Requests are counted by method, route template and status, strangers' paths and methods in one place."""
    agent = await api.register("some-bot", "v1")
    await api.get(f"/agents/{agent['id']}")
    await api.get(f"/agents/{uuid4()}")
    await api.get("/agents/name/some-bot")
    await api.get("/a-strangers-path")
    await api.call("PROPFIND", "/agents")
    answer = await api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    for line in (
        'podium_http_requests_total{method="GET",route="/agents/{agent_id}",status="200"} 1.0',
        'podium_http_requests_total{method="GET",route="/agents/{agent_id}",status="404"} 1.0',
        'podium_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'podium_http_requests_total{method="OTHER",route="unmatched",status="405"} 1.0',
        'podium_http_request_seconds_count{method="GET",route="/agents/name/{name}"} 1.0',
    ):
        assert line in text
    assert "some-bot" not in text
    assert agent["id"] not in text
    assert "stranger" not in text


async def test_each_application_counts_for_itself(serve: Serve) -> None:
    """Two in one process do not mix."""
    one, two = await serve(), await serve()
    await one.get("/agents")
    assert 'route="/agents"' not in (await two.get("/metrics")).body.decode()


async def test_every_route_is_described(api: Api) -> None:
    """The OpenAPI document names what is answered, refusals included, and needs nothing from elsewhere."""
    document = (await api.get("/openapi.json")).json
    assert (await api.get("/schema/openapi.json")).json == document
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            if path.startswith("/agents") and not path.endswith("/rpc"):
                content = operation["responses"]["400"]["content"]
                assert content["application/problem+json"]["schema"]["$ref"].endswith("/Problem"), (method, path)
            if method in {"post", "patch"} and not path.endswith(("/rpc", "/retry")):
                assert operation["requestBody"]["content"]["application/json"]["schema"], (method, path)
    promote = document["paths"]["/agents/{agent_id}/deployments/{deployment_id}/promote"]["post"]
    assert not promote["requestBody"]["required"]
    assert "If-Match" in [parameter["name"] for parameter in promote["parameters"]]
