"""Signing people in at an issuer: the authorization code flow with PKCE, state and nonce.

https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth, https://www.rfc-editor.org/rfc/rfc7636,
https://www.rfc-editor.org/rfc/rfc9207
"""

import asyncio
import os
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from time import monotonic
from typing import Any
from urllib.parse import quote_plus, urlencode

import aiohttp
import structlog
from joserfc.errors import JoseError

from api.auth.oidc.grants import Claims, IssuerConfig
from api.auth.oidc.issuer_documents import FAILURES, discovery, document, endpoint, session_with
from api.auth.oidc.issuer_keys import RETRY_SECONDS, IssuerUnavailable
from api.auth.oidc.tokens import Tokens
from services.api_keys import same_secret
from services.errors import PodiumError

# The discovery document is read again after this.
FRESH_SECONDS = 3600.0
_RANDOM_BYTES = 32

log = structlog.get_logger(__name__)


class SignInRefused(PodiumError):
    """The issuer did not sign you in: begin again."""

    status = 403
    reason = "sign-in-refused"


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that has been begun. Only the browser that has begun it can complete it."""

    issuer: str
    state: str
    nonce: str
    verifier: str
    redirect_uri: str


@dataclass(slots=True)
class _Discovery:
    """What is known of one issuer's discovery document."""

    content: dict[str, Any] = field(default_factory=dict)
    read_at: float = -FRESH_SECONDS
    failed_at: float = -RETRY_SECONDS
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class CodeFlow:
    """Signs people in at the issuers of the file that have a `console_client_id`, for one process."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.issuers = [config for config in tokens.configs if config.console_client_id is not None]
        self._discovered = {config.url: _Discovery() for config in self.issuers}

    def config(self, url: str) -> IssuerConfig | None:
        """The issuer with this URL, if people may still sign in there."""
        return next((each for each in self.issuers if each.url == url), None)

    async def begin(self, config: IssuerConfig, redirect_uri: str) -> tuple[str, Begun]:
        """Where to send the browser, and what to remember until it comes back. Raises `IssuerUnavailable`."""
        try:
            found = await self._discovery(config)
            target = endpoint(found, "authorization_endpoint", config)
        except FAILURES as error:
            raise _away(config, error) from error
        state, nonce, verifier = (secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(3))
        query = {
            "response_type": "code",
            "client_id": config.console_client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(config.console_scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        separator = "&" if "?" in target else "?"
        return f"{target}{separator}{urlencode(query)}", Begun(config.url, state, nonce, verifier, redirect_uri)

    async def finish(self, begun: Begun, answer: Mapping[str, str]) -> Claims:
        """The claims of who has signed in, from what the issuer has added to the redirect URI.

        Raises `SignInRefused`, and `IssuerUnavailable` if the issuer does not answer.
        """
        if not same_secret(answer.get("state", ""), begun.state):
            raise SignInRefused("This sign-in was begun in another window or browser: begin again.")
        config = self.config(begun.issuer)
        if config is None:
            raise SignInRefused("Nobody can sign in at this issuer any more.")
        if answer.get("iss", config.url) != config.url:
            raise SignInRefused("The answer is of another issuer than the one that was asked: begin again.")
        if "error" in answer or "code" not in answer:
            raise SignInRefused(f"{config.name} did not sign you in ({_known(answer.get('error', ''))}): begin again.")
        token = await self._id_token(config, begun, answer["code"])
        try:
            claims = await self._tokens.claims(token, config, audience=config.console_client_id or "")
            _check(claims, config, begun)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.warning(
                "A sign-in was refused.", action="oidc.sign_in_refused", issuer=config.url, cause=repr(error)[:200]
            )
            raise SignInRefused(f"What {config.name} has answered is not valid: begin again.") from error
        return claims

    async def _id_token(self, config: IssuerConfig, begun: Begun, code: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": begun.redirect_uri,
            "client_id": config.console_client_id or "",
            "code_verifier": begun.verifier,
        }
        try:
            found = await self._discovery(config)
            async with session_with(config) as session:
                response = await self._exchange(session, config, found, form)
                if response.status in {400, 401, 403}:
                    response.release()
                    raise SignInRefused(
                        f"{config.name} has not accepted the answer, maybe since it was used before: begin again."
                    )
                return str((await document(response))["id_token"])
        except FAILURES as error:
            raise _away(config, error) from error

    async def _exchange(
        self, session: aiohttp.ClientSession, config: IssuerConfig, found: dict[str, Any], form: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """The answer of the token endpoint. A confidential client proves itself in a way that the issuer supports."""
        headers: dict[str, str] = {}
        if config.console_client_secret_env is not None:
            secret = os.environ[config.console_client_secret_env]
            methods = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in methods:
                pair = (quote_plus(each) for each in (form["client_id"], secret))
                # https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
                headers["authorization"] = aiohttp.encode_basic_auth(*pair)
            else:
                form = {**form, "client_secret": secret}
        url = endpoint(found, "token_endpoint", config)
        return await session.post(url, data=form, headers=headers, allow_redirects=False)

    async def _discovery(self, config: IssuerConfig) -> dict[str, Any]:
        """The issuer's discovery document. Anybody can ask for it, so after a failure it is not read again at once.

        Raises `IssuerUnavailable`.
        """
        known, asked_at = self._discovered[config.url], monotonic()
        async with known.reading:
            if known.content and asked_at - known.read_at <= FRESH_SECONDS:
                return known.content
            if known.failed_at > asked_at - RETRY_SECONDS:
                raise IssuerUnavailable(_says_nothing(config))
            try:
                async with session_with(config) as session:
                    known.content = await discovery(session, config)
            except FAILURES as error:
                known.failed_at = monotonic()
                raise _away(config, error) from error
            known.read_at = monotonic()
            return known.content


def _check(claims: Claims, config: IssuerConfig, begun: Begun) -> None:
    """Raise `ValueError` unless the token was made for this sign-in, and for this client."""
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not same_secret(nonce, begun.nonce):
        raise ValueError("the token has the nonce of another sign-in")
    if claims.get("azp", config.console_client_id) != config.console_client_id:
        raise ValueError("the token was made for another client")


def _known(error: str) -> str:
    """The error code of the issuer, if it looks like one: anybody can write this into a link."""
    return error.replace("_", " ") if re.fullmatch("[a-z_]{1,50}", error) else "without a reason"


def _away(config: IssuerConfig, error: Exception) -> PodiumError:
    log.warning("An issuer could not be asked.", action="oidc.issuer_away", issuer=config.url, cause=repr(error)[:200])
    return IssuerUnavailable(_says_nothing(config))


def _says_nothing(config: IssuerConfig) -> str:
    return f"{config.name} does not answer now: try again in a moment."
