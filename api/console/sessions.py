"""Sessions of browsers: a signed cookie without any key in it, and the token that each form must send back.

Every process reads it, since its key is derived from PODIUM_SECRET_KEY. Nothing is stored, so a session ends with its
cookie, after its longest age, or when the key that it was opened with changes.
"""

import hashlib
import hmac
import secrets
from dataclasses import astuple, dataclass
from urllib.parse import urlsplit

from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer
from litestar.datastructures import Cookie

from api.auth.oidc.code_flow import Begun, SignInRefused
from api.http.parameters import AnyRequest
from api.http.problems import CrossOrigin
from services.api_keys import same_secret
from services.settings import Settings

MAX_AGE_SECONDS = 12 * 3600
# Cookies ignore ports: two Podiums on one machine must not sign each other's people out.
COOKIE_PREFIX = "podium_"
# Calls to agents do not carry it.
COOKIE_PATH = "/console"
# Where issuers send browsers back to.
CALLBACK = "/console/sign-in/callback"
# How long a person may take to sign in at the issuer.
SIGN_IN_SECONDS = 600
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
        self._sign_ins = URLSafeTimedSerializer(
            self._key, salt="sign-in", signer_kwargs={"digest_method": hashlib.sha256}
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
            self._cookie, COOKIE_PATH, str(value), max_age=MAX_AGE_SECONDS, secure=self.is_secure(request),
            httponly=True, samesite="strict",
        )  # fmt: skip

    def remember(self, begun: Begun, next_page: str, request: AnyRequest) -> Cookie:
        """The cookie that keeps a sign-in until the browser comes back from the issuer.

        Lax, unlike that of the session: browsers send no Strict cookie when the issuer's page sends them back.
        """
        value = self._sign_ins.dumps([astuple(begun), next_page])
        return self._sign_in_cookie(str(value), SIGN_IN_SECONDS, request)

    def forget(self, request: AnyRequest) -> Cookie:
        """The cookie that ends a sign-in."""
        return self._sign_in_cookie("", 0, request)

    def remembered(self, request: AnyRequest) -> tuple[Begun, str]:
        """The sign-in that this browser has begun, and the page to show then.

        Raises `SignInRefused` if it has begun none, or too long ago.
        """
        try:
            begun, next_page = self._sign_ins.loads(
                request.cookies.get(f"{self._cookie}_sign_in", ""), max_age=SIGN_IN_SECONDS
            )
            return Begun(*begun), str(next_page)
        except SignatureExpired as exc:
            raise SignInRefused("The sign-in took longer than ten minutes: begin again.") from exc
        except (BadData, ValueError, TypeError) as exc:
            raise SignInRefused("This sign-in was begun in another window or browser: begin again.") from exc

    def _sign_in_cookie(self, value: str, max_age: int, request: AnyRequest) -> Cookie:
        return Cookie(
            f"{self._cookie}_sign_in", CALLBACK, value, max_age=max_age, secure=self.is_secure(request),
            httponly=True, samesite="lax",
        )  # fmt: skip

    def base_url(self, request: AnyRequest) -> str:
        """The address of this API in the browser."""
        if self._public_url.netloc:
            return self._public_url.geturl().rstrip("/")
        return f"{'https' if self.is_secure(request) else 'http'}://{request.headers.get('host', '')}"

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

    def is_secure(self, request: AnyRequest) -> bool:
        """Whether the browser uses HTTPS, maybe up to a proxy. A wrong header affects the browser that sends it."""
        schemes = {request.url.scheme, self._public_url.scheme, request.headers.get("x-forwarded-proto", "").lower()}
        return "https" in schemes
