"""Rendering of pages: templates, security headers, and what every page gets."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import MediaType, Response
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Redirect, Template
from litestar.template import TemplateConfig
from litestar.types import ResponseCookies

from api.console.assets import asset_path
from api.console.sessions import TOKEN_FIELD, Session, Sessions
from api.console.sparkline import sparkline
from api.console.visitors import visitor_of
from api.console.words import FILTERS, plain
from api.http.parameters import AnyRequest
from api.resources import Resources, provide_resources
from services.domain.identity import Identity, Scope
from services.errors import AgentNotFound, AllAgentsNeeded, InsufficientScope, InvalidRequest, PodiumError

HOME = "/console/agents"
SIGN_IN = "/console/sign-in"
FORM = "application/x-www-form-urlencoded"
# More fields than any form has.
FIELDS_MAX = 50
# No script or style inside a page runs, whatever an agent says about itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class SignInNeeded(PodiumError):
    """Sign in to see this page."""

    status = 401
    reason = "sign-in-needed"


def _shown(value: object) -> object:
    """Text as it is written on a page. Markup, which only templates make, is left as it is."""
    return plain(value) if type(value) is str else value


def template_config() -> TemplateConfig[JinjaTemplateEngine]:
    """The templates. Every value is escaped, and a name that a page does not give is an error."""
    folder = str(files("api.console").joinpath("templates"))
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(asset=asset_path, sparkline=sparkline, podium_version=version("podium"))
    return TemplateConfig(instance=JinjaTemplateEngine(engine_instance=environment))


class Page:
    """One request of a visitor."""

    def __init__(self, request: AnyRequest, resources: Resources) -> None:
        self.request = request
        self.resources = resources
        self.sessions = Sessions(resources.settings)
        self.session: Session | None = self.sessions.read(request)
        self.visitor: Identity | None = None

    @property
    def identity(self) -> Identity:
        """The visitor of a page that only those see who have signed in."""
        assert self.visitor is not None
        return self.visitor

    def require(self, scope: Scope) -> None:
        """Raise `InsufficientScope` unless the visitor may do this."""
        if not self.identity.may(scope):
            raise InsufficientScope((scope,))

    def require_agent(self, name: str) -> None:
        """Raise `AgentNotFound` unless this agent exists for the visitor."""
        if not self.identity.sees(name):
            raise AgentNotFound

    def require_all_agents(self) -> None:
        """Raise `AllAgentsNeeded` if the visitor sees some agents only."""
        if self.identity.agents is not None:
            raise AllAgentsNeeded

    async def identify(self) -> Identity | None:
        """The visitor anew, as their key is now."""
        return await visitor_of(self.resources, self.session.proof if self.session else None)

    def show(self, template: str, *, status: int = 200, **context: Any) -> Template:  # noqa: ANN401 - what it shows
        """The page. A browser without a session gets one, so that the forms of the page can be checked."""
        session = self.session or self.sessions.new()
        cookies: ResponseCookies = [] if self.session else [self.sessions.cookie(session, self.request)]
        shared = {
            "visitor": self.visitor,
            "token": self.sessions.token(session),
            "can_sign_out": self.visitor is not None and self.session is not None and self.session.proof is not None,
            "path": self.request.url.path,
            "now": datetime.now(UTC),
        }
        return Template(
            template,
            context={**shared, **context},
            headers=HEADERS,
            cookies=cookies,
            status_code=status,
            media_type=MediaType.HTML,
        )

    async def form(self) -> dict[str, str]:
        """The fields of a form that one of the console's own pages sent. Raises `CrossOrigin`, `InvalidRequest`."""
        if self.request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            raise InvalidRequest("The console takes forms only.")
        try:
            body = (await self.request.body()).decode()
            found = parse_qs(body, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
        except ValueError as exc:
            raise InvalidRequest("The form cannot be read.") from exc
        fields = {name: values[-1] for name, values in found.items()}
        self.session = self.sessions.check_change(self.request, self.session, fields.get(TOKEN_FIELD, ""))
        return fields


async def provide_any_page(request: AnyRequest, state: State) -> Page:
    """A page for anybody, signed in or not."""
    page = Page(request, provide_resources(state))
    page.visitor = await page.identify()
    return page


async def provide_page(request: AnyRequest, state: State) -> Page:
    """A page for a visitor who may read. Raises `SignInNeeded`, `InsufficientScope`."""
    page = await provide_any_page(request, state)
    if page.visitor is None:
        raise SignInNeeded
    page.require("read")
    request.scope["user"] = page.visitor
    return page


# The annotation of a handler's `page` parameter.
OnPage = NamedDependency[Page]


def go(path: str, headers: Mapping[str, str] | None = None) -> Redirect:
    """The browser reads this page next."""
    return Redirect(path, status_code=303, headers={**HEADERS, **(headers or {})})


def comes_from_elsewhere(request: AnyRequest) -> bool:
    """Whether a page of another site has led here, so that the browser has not sent the Strict cookie of a session."""
    return request.method == "GET" and request.headers.get("sec-fetch-site", "") in {"cross-site", "same-site"}


def lead_on(request: AnyRequest) -> Template:
    """A page that leads to the address that was asked for, this time from the console itself, with the session."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    page = Page(request, provide_resources(request.app.state))
    shown = page.show("on.html", title="One moment", target=target)
    shown.cookies = []
    return shown


def to_sign_in(request: AnyRequest) -> Response[Any] | Template:
    """The page for signing in, which leads back to the page that was asked for."""
    if comes_from_elsewhere(request):
        return lead_on(request)
    wanted = request.url.path
    if request.url.query:
        wanted += f"?{request.url.query}"
    target = f"{SIGN_IN}?next={quote(wanted, safe='')}"
    if "hx-request" in request.headers:
        return Response(b"", status_code=401, headers={**HEADERS, "hx-redirect": SIGN_IN})
    if request.method != "GET":
        return go(SIGN_IN)
    return go(target)
