"""Health routes, metrics and the OpenAPI document."""

import asyncio
import re
from uuid import uuid4

from pydantic import SecretStr

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import refused_address, silent_port

# Of the POST routes.
WITHOUT_BODY = ("/rpc", "/retry", "/pause", "/resume", "/test")


async def test_live_and_ready(api: Api) -> None:
    """200 for both; readiness names every part."""
    assert (await api.get("/health/live")).status == 200
    ready = await api.get("/health/ready")
    assert ready.status == 200
    assert ready.json["status"] == "ready"
    assert ready.json["parts"]["database"]["ok"]
    assert ready.json["parts"]["broker"]["ok"]


async def test_ready_without_broker(serve: Serve) -> None:
    """The broker is reported, without user and password; it does not change readiness."""
    async with refused_address() as nowhere:
        amqp_url = SecretStr(nowhere.replace("http://", "amqp://user:secret@"))
        api = await serve(amqp_url=amqp_url)
        ready = await api.get("/health/ready")
    assert ready.status == 200
    assert ready.json["parts"]["broker"] == {"ok": False, "detail": "cannot be reached"}
    without = await serve(amqp_url=SecretStr(""))
    assert (await without.get("/health/ready")).json["parts"]["broker"]["detail"] == "not configured"


async def test_not_ready_without_database(serve: Serve) -> None:
    """503 names the part that is down; the process is still live."""
    async with refused_address() as nowhere:
        api = await serve(database_url=SecretStr(f"{nowhere.replace('http', 'postgresql')}/podium"))
        ready = await api.get("/health/ready")
        live = await api.get("/health/live")
    assert (ready.status, live.status) == (503, 200)
    assert ready.json["status"] == "not ready"
    assert ready.json["parts"]["database"] == {"ok": False, "detail": "cannot be reached"}
    assert ready.json["parts"]["broker"]["ok"]


async def test_a_database_that_does_not_answer(serve: Serve) -> None:
    """Not ready after two seconds if the database does not answer."""
    async with silent_port() as port:
        api = await serve(database_url=SecretStr(f"postgresql://u@127.0.0.1:{port}/podium"))
        async with asyncio.timeout(4):
            ready = await api.get("/health/ready")
    assert ready.status == 503
    assert ready.json["parts"]["database"]["detail"] == "no answer within 2 s"


async def test_metrics_by_route_and_never_by_path(api: Api) -> None:
    """Requests are counted by method, route template and status; unknown paths and methods share one label."""
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
    assert not re.search(r"podium_(http|rpc)_.*some-bot", text)
    assert agent["id"] not in text
    assert "stranger" not in text


async def test_each_application_counts_for_itself(serve: Serve) -> None:
    """Two applications in one process have separate metrics."""
    one, two = await serve(), await serve()
    await one.get("/agents")
    assert 'route="/agents"' not in (await two.get("/metrics")).body.decode()


async def test_every_route_is_described(api: Api) -> None:
    """The OpenAPI document contains every answer including errors, and refers to no other host."""
    document = (await api.get("/openapi.json")).json
    assert (await api.get("/schema/openapi.json")).json == document
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            if path.startswith("/agents") and not path.endswith("/rpc"):
                content = operation["responses"]["400"]["content"]
                assert content["application/problem+json"]["schema"]["$ref"].endswith("/Problem"), (method, path)
            if method in {"post", "patch"} and not path.endswith(WITHOUT_BODY):
                assert operation["requestBody"]["content"]["application/json"]["schema"], (method, path)
    promote = document["paths"]["/agents/{agent_id}/deployments/{deployment_id}/promote"]["post"]
    assert not promote["requestBody"]["required"]
    assert "If-Match" in [parameter["name"] for parameter in promote["parameters"]]
