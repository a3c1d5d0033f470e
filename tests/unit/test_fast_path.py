from typing import Any

import pytest
from litestar import Litestar
from litestar.exceptions import HTTPException
from pydantic import SecretStr

from api.app import create_app
from api.gateway.fast_path import FastPath
from api.gateway.routes import ROUTES
from services.settings import Settings

Matched = tuple[str, dict[str, Any]]


@pytest.fixture
def app() -> Litestar:
    """The application, which connects to nothing."""
    return create_app(Settings(secret_key=SecretStr("a secret")))


def routed(app: Litestar, method: str, path: str) -> Matched | None:
    """The route template and parameters by Litestar's routing; None if the route is not an RPC."""
    try:
        _, handler, _, parameters, template = app.asgi_router.handle_routing(path=path, method=method)
    except HTTPException:
        return None
    names = {each.handler_name for each in ROUTES}
    return (template, parameters) if getattr(handler, "handler_name", None) in names else None


async def by_fast_path(app: Litestar, method: str, path: str, monkeypatch: pytest.MonkeyPatch) -> Matched | None:
    """The route template and parameters by the fast path; None if the fast path does not take the request."""
    taken: list[Matched] = []
    fast_path = FastPath(app)

    async def forward(_scope: object, _receive: object, _send: object, parameters: dict[str, str]) -> None:
        taken.append((fast_path._routes[frozenset(parameters)][0].path_format, parameters))

    async def elsewhere(*_: object) -> Any:
        pass

    monkeypatch.setattr(fast_path, "_forward", forward)
    monkeypatch.setattr(fast_path, "_app", elsewhere)
    scope: Any = {"type": "http", "method": method, "path": path}
    await fast_path(scope, elsewhere, elsewhere)
    return taken[0] if taken else None


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path",
    ["/agents/1/rpc", "/agents/name/bot/rpc", "/agents/1/deployments/v1/rpc", "/agents/ü /rpc", "/agents/name/rpc/rpc"],
)
async def test_rpcs_take_the_fast_path(app: Litestar, monkeypatch: pytest.MonkeyPatch, method: str, path: str) -> None:
    """With the same route and parameters as full routing."""
    expected = routed(app, method, path)
    assert expected is not None
    assert await by_fast_path(app, method, path, monkeypatch) == expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/agents/1/rpc"),
        ("HEAD", "/agents/name/bot/rpc"),
        ("OPTIONS", "/agents/name/bot/rpc"),
        ("POST", "/agents/rpc"),
        ("POST", "/agents/name/rpc"),
        ("POST", "/agents//rpc"),
        ("POST", "/agents/name//rpc"),
        ("POST", "/agents/1/deployments//rpc"),
        ("POST", "/agents/name/a/deployments/b/rpc"),
        ("POST", "/agents/1/2/rpc"),
        ("POST", "/agents/1/rpc/"),
        ("POST", "/agents/1/rpc\n"),
        ("POST", "/x/agents/1/rpc"),
        ("GET", "/agents/1"),
        ("POST", "/agents/1/deployments/v1/promote"),
        ("GET", "/agents/1/.well-known/agent-card.json"),
    ],
)
async def test_other_requests_take_full_routing(
    app: Litestar, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """The fast path leaves them to the Litestar application."""
    assert await by_fast_path(app, method, path, monkeypatch) is None
