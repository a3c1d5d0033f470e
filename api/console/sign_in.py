"""Signing in with a key, and out."""

from typing import Annotated, Any

from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.params import QueryParameter
from litestar.response import Template

from api.console.page import HOME, SIGN_IN, OnPage, go
from api.console.visitors import prove
from services.domain.identity import EVERYBODY

Next = Annotated[str | None, QueryParameter()]


@get(SIGN_IN, include_in_schema=False)
async def show_sign_in(any_page: OnPage, next_page: Annotated[str | None, QueryParameter(name="next")] = None) -> Any:  # noqa: ANN401 - a page, or the way to another
    """The form for a key; for those who have signed in, the page that they wanted."""
    if any_page.visitor not in {None, EVERYBODY}:
        return go(_own(next_page))
    return any_page.show("sign_in.html", next=_own(next_page), failure=None)


@post(SIGN_IN, include_in_schema=False, status_code=200)
async def sign_in(any_page: OnPage) -> Any:  # noqa: ANN401 - as above
    """Open a session with a key. The cookie does not contain it."""
    form = await any_page.form()
    target = _own(form.get("next"))
    client = any_page.request.client
    address = client.host if client else ""
    proof = await prove(any_page.resources, form.get("key", "").strip(), address)
    if proof is None:
        return _refused(any_page, target)
    answer = go(target)
    answer.set_cookie(any_page.sessions.cookie(any_page.sessions.new(proof), any_page.request))
    return answer


@post("/console/sign-out", include_in_schema=False, status_code=200)
async def sign_out(any_page: OnPage) -> Response[Any]:
    """End the session of this browser."""
    await any_page.form()
    assert any_page.session is not None
    answer = go(SIGN_IN)
    cookie = any_page.sessions.cookie(any_page.session, any_page.request)
    answer.set_cookie(Cookie(cookie.key, cookie.path, "", max_age=0, httponly=True, samesite="strict"))
    return answer


def _refused(page: OnPage, target: str) -> Template:
    failure = "This key is not valid. Check that you copied all of it."
    return page.show("sign_in.html", status=401, next=target, failure=failure)


def _own(path: str | None) -> str:
    """The path if it is one of the console's own; else the first page."""
    own = path is not None and path.startswith("/console/") and "\\" not in path and path.isprintable()
    return path if own and path is not None else HOME


ROUTES = [show_sign_in, sign_in, sign_out]
