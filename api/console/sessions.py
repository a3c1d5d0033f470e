"""Sessions of browsers: a signed cookie without any key in it, and the token that each form must send back.

Every process reads it, since its key is derived from PODIUM_SECRET_KEY. Nothing is stored, so a session ends with its
cookie, after its longest age, or when the key that it was opened with changes.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from itsdangerous import BadData, URLSafeTimedSerializer
from litestar.datastructures import Cookie

from api.http.parameters import AnyRequest
from api.http.problems import CrossOrigin
from services.api_keys import same_secret
from services.settings import Settings

MAX_AGE_SECONDS = 12 * 3600
# Cookies ignore ports: two Podiums on one machine must not sign each other's people out.
COOKIE_PREFIX = "podium_"
# Calls to agents do not carry it.
COOKIE_PATH = "/console"
TOKEN_FIELD = "token"  # noqa: S105 - the name of a form's field


@dataclass(frozen=True, slots=True)
class Session:
    """One browser. `proof` is that of the key with which it has signed in, if it has."""

    nonce: str
    proof: str | None = None


class Sessions:
    """Reads and writes sessions."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.secret_key.get_secret_value()
        self._key = hmac.new(secret.encode(), b"podium console session", hashlib.sha256).digest()
        self._serializer = URLSafeTimedSerializer(
            self._key, salt="session", signer_kwargs={"digest_method": hashlib.sha256}
        )
        self._cookie = COOKIE_PREFIX + hashlib.sha256(self._key).hexdigest()[:8]
        self._public_url = urlsplit(settings.public_url)

    def read(self, request: AnyRequest) -> Session | None:
        """The session of the request; None if it has none, or one that is forged or too old."""
        try:
            nonce, proof = self._serializer.loads(request.cookies.get(self._cookie, ""), max_age=MAX_AGE_SECONDS)
        except (BadData, ValueError, TypeError):
            return None
        return Session(nonce, proof)

    def new(self, proof: str | None = None) -> Session:
        """A session that no browser has yet."""
        return Session(secrets.token_urlsafe(16), proof)

    def cookie(self, session: Session, request: AnyRequest) -> Cookie:
        """The cookie that keeps the session."""
        value = self._serializer.dumps([session.nonce, session.proof])
        return Cookie(
            self._cookie, COOKIE_PATH, str(value), max_age=MAX_AGE_SECONDS, secure=self._is_secure(request),
            httponly=True, samesite="strict",
        )  # fmt: skip

    def token(self, session: Session) -> str:
        """The value that forms of this session must contain."""
        return hmac.new(self._key, f"token {session.nonce}".encode(), hashlib.sha256).hexdigest()

    def check_change(self, request: AnyRequest, session: Session | None, token: str) -> Session:
        """The session of a form that one of its own pages sent. Raises `CrossOrigin` for any other request."""
        own = {request.headers.get("host", "").lower(), self._public_url.netloc.lower()} - {""}
        origins = request.headers.getall("origin", [])
        if len(origins) != 1 or urlsplit(origins[0]).netloc.lower() not in own:
            raise CrossOrigin("This form was not sent by a page of the console: open the page again.")
        if session is None or not same_secret(token, self.token(session)):
            raise CrossOrigin("This form is from an earlier session: open the page again, then repeat the change.")
        return session

    def _is_secure(self, request: AnyRequest) -> bool:
        """Whether the browser uses HTTPS, maybe up to a proxy. A wrong header affects the browser that sends it."""
        schemes = {request.url.scheme, self._public_url.scheme, request.headers.get("x-forwarded-proto", "").lower()}
        return "https" in schemes
