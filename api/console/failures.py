"""Errors as pages: a sentence that says what to do, and the way back."""

from typing import Any

from litestar import Response
from litestar.exceptions import HTTPException
from litestar.response import Template
from litestar.types import ExceptionHandlersMap

from api.console.page import Page, SignInNeeded, to_sign_in
from api.http.parameters import AnyRequest
from api.http.problems import described, log_defect
from api.resources import provide_resources
from services.errors import PodiumError


def show_error(request: AnyRequest, error: PodiumError) -> Response[Any] | Template:
    """The page for an error of Podium."""
    if isinstance(error, SignInNeeded):
        return to_sign_in(request)
    return _page(request, error)


def show_framework_error(request: AnyRequest, error: HTTPException) -> Template:
    """The page for an unknown path, a method or a parameter that a page does not have."""
    return _page(request, described(error))


def show_defect(request: AnyRequest, error: Exception) -> Template:
    """The page for any other exception, without its details."""
    return _page(request, log_defect(request, error))


ERROR_PAGES: ExceptionHandlersMap = {
    PodiumError: show_error,
    HTTPException: show_framework_error,
    Exception: show_defect,
}


def _page(request: AnyRequest, error: PodiumError) -> Template:
    page = Page(request, provide_resources(request.app.state))
    page.session = page.session or page.sessions.new()
    title = error.reason.replace("-", " ").capitalize()
    return page.show("error.html", status=error.status, title=title, error=error)
