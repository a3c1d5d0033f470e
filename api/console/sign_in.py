"""Signing in with a key or at an issuer, and out."""

from typing import Annotated, Any
from urllib.parse import quote

from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, QueryParameter
from litestar.response import Template

from api.auth.oidc.code_flow import Begun, SignInRefused
from api.console.page import HOME, SIGN_IN, OnPage, Page, comes_from_elsewhere, go, lead_on
from api.console.sessions import CALLBACK
from api.console.visitors import proof_of, prove
from api.http.parameters import AnyRequest
from services.domain.identity import EVERYBODY
from services.errors import PodiumError

# Browsers keep cookies of 4096 bytes, with their names and attributes.
COOKIE_MAX = 3900


@get(SIGN_IN, include_in_schema=False)
async def show_sign_in(any_page: OnPage, next_page: Annotated[str | None, QueryParameter(name="next")] = None) -> Any:  # noqa: ANN401 - a page, or the way to another
    """The form for a key; for those who have signed in, the page that they wanted."""
    if comes_from_elsewhere(any_page.request):
        return lead_on(any_page.request)
    if any_page.visitor not in {None, EVERYBODY}:
        return go(_own(next_page))
    return _form(any_page, _own(next_page))


@post(SIGN_IN, include_in_schema=False, status_code=200)
async def sign_in(any_page: OnPage) -> Any:  # noqa: ANN401 - as above
    """Open a session with a key. The cookie does not contain it."""
    form = await any_page.form()
    target = _own(form.get("next"))
    proof = await prove(any_page.resources, form.get("key", "").strip(), _address(any_page.request))
    if proof is None:
        return _refused(any_page, target)
    answer = go(target)
    answer.set_cookie(any_page.sessions.cookie(any_page.sessions.new(proof), any_page.request))
    return answer


@get(f"{SIGN_IN}/with/{{number:int}}", include_in_schema=False)
async def begin_at_issuer(
    number: FromPath[int], any_page: OnPage, next_page: Annotated[str | None, QueryParameter(name="next")] = None
) -> Any:  # noqa: ANN401 - the way to the issuer, or a page
    """Send the browser to an issuer; a cookie remembers the sign-in that it has begun.

    Only the console's own page begins one: it ends with another session, so no link of another site may.
    """
    target, flow, request = _own(next_page), any_page.resources.sign_ins, any_page.request
    if not 0 <= number < len(flow.issuers):
        raise NotFoundException
    if comes_from_elsewhere(request):
        return go(f"{SIGN_IN}?next={quote(target, safe='')}")
    any_page.resources.callers.failures.check(_address(request))
    sessions = any_page.sessions
    try:
        address, begun = await flow.begin(flow.issuers[number], f"{sessions.base_url(request)}{CALLBACK}")
    except PodiumError as error:
        return _not_signed_in(any_page, error, target)
    answer = go(address)
    answer.set_cookie(sessions.remember(begun, target, request))
    return answer


@get(CALLBACK, include_in_schema=False)
async def return_from_issuer(any_page: OnPage) -> Template:
    """Open a session for whom the issuer has signed in, within the grants of the file.

    The answer is a page that leads on, not a redirect: a browser sends the Strict cookie of the session only with
    requests that began on the console's own pages, and this one began at the issuer.
    """
    sessions, request = any_page.sessions, any_page.request
    failures, address = any_page.resources.callers.failures, _address(request)
    failures.check(address)
    target, begun = HOME, None
    try:
        begun, next_page = sessions.remembered(request)
        target = _own(next_page)
        if begun.redirect_uri != f"{sessions.base_url(request)}{CALLBACK}":
            raise SignInRefused("This sign-in was begun at another address of the console: begin again.")
        cookie = await _signed_in(any_page, begun)
    except PodiumError as error:
        # Without a sign-in that was begun nothing was asked of the issuer, and any page can have a browser come here.
        if begun is not None and isinstance(error, SignInRefused):
            failures.record(address)
        return _not_signed_in(any_page, error, target)
    page = any_page.show("on.html", title="You are signed in", target=target)
    page.cookies = [cookie, sessions.forget(request)]
    return page


async def _signed_in(page: Page, begun: Begun) -> Cookie:
    """The session of whom the issuer has signed in. Raises `SignInRefused`, `IssuerUnavailable`."""
    flow = page.resources.sign_ins
    claims = await flow.finish(begun, dict(page.request.query_params.items()))
    config = flow.config(begun.issuer)
    assert config is not None
    identity = config.identity(claims)
    if identity is None or not identity.may("read"):
        raise SignInRefused(
            f"{config.name} knows you, but nothing here is open to you: ask whoever runs this Podium for a grant."
        )
    cookie = page.sessions.cookie(page.sessions.new(proof_of(config, claims)), page.request)
    if len(cookie.value or "") > COOKIE_MAX:
        raise SignInRefused(f"{config.name} says more about you than a cookie can hold.")
    return cookie


def _not_signed_in(page: Page, error: PodiumError, target: str) -> Template:
    """Why nobody is signed in. A session that the browser did not send, since it came from elsewhere, stays."""
    shown = page.show("not_signed_in.html", status=error.status, error=error, target=target)
    shown.cookies = [page.sessions.forget(page.request)]
    return shown


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
    return _form(page, target, 401, "This key is not valid. Check that you copied all of it.")


def _form(page: Page, target: str, status: int = 200, failure: str | None = None) -> Template:
    issuers = [config.name for config in page.resources.sign_ins.issuers]
    return page.show("sign_in.html", status=status, next=target, failure=failure, issuers=issuers)


def _address(request: AnyRequest) -> str:
    """Whose failures are counted."""
    return request.client.host if request.client else ""


def _own(path: str | None) -> str:
    """The path if it is one of the console's own; else the first page."""
    if path is None or not path.startswith("/console/") or "\\" in path or not path.isprintable():
        return HOME
    # Pages for signing in would begin again.
    return HOME if path.startswith((SIGN_IN, "/console/sign-out", "/console/live")) else path


ROUTES = [show_sign_in, sign_in, begin_at_issuer, return_from_issuer, sign_out]
