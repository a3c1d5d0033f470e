"""The file of issuers and grants: which tokens are accepted, and what their holders may do."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from contracts.fields import is_loopback
from services.domain.identity import AGENT_PATTERN, PREFIX_MARK, Identity, Scope

# Only asymmetric ones: whoever can verify a symmetric signature can make it.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"]
ACTOR_MAX_LENGTH = 200

Claims = Mapping[str, Any]


class GrantsInvalid(Exception):
    """The file cannot be used: its message names the field."""


def _secure(value: str) -> str:
    """A URL to fetch keys from: with TLS, unless it is on this machine."""
    parts = urlsplit(value)
    if parts.username or parts.query or parts.fragment or not parts.hostname:
        raise ValueError("it must be a plain URL")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("it must begin with https://")
    return value


SecureUrl = Annotated[str, AfterValidator(_secure)]


class Grant(BaseModel):
    """What the holders of tokens with these claims may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: Annotated[dict[str, str], Field(min_length=1)]
    """Each must have this value; one that ends with `*`, a value that begins so. Of a list, one element is enough."""
    scopes: Annotated[list[Scope], Field(min_length=1)]
    agents: Annotated[list[Annotated[str, StringConstraints(pattern=AGENT_PATTERN)]], Field(min_length=1)] | None = None
    actor: str | None = None
    """The name in the ledger, from claims: `{repository}@{ref}`. By default a verified e-mail, else the subject."""

    @model_validator(mode="after")
    def _is_readable(self) -> Self:
        if self.actor is not None:
            for _, name, spec, conversion in Formatter().parse(self.actor):
                if spec or conversion or (name is not None and not re.fullmatch(r"[\w/.:-]+", name)):
                    raise ValueError("actor: use only names of claims in braces")
        return self

    def matches(self, claims: Claims) -> bool:
        """Whether the token has all these claims."""
        return all(_matches(wanted, claims.get(name)) for name, wanted in self.claims.items())

    def actor_of(self, claims: Claims) -> str:
        """The name of the token's holder."""
        if self.actor is None:
            email = claims.get("email")
            named = email if isinstance(email, str) and claims.get("email_verified") is True else claims["sub"]
        else:
            named = "".join(
                literal + (_text(claims.get(name)) if name is not None else "")
                for literal, name, _, _ in Formatter().parse(self.actor)
            )
        printable = "".join(character if character.isprintable() else "?" for character in named)
        return f"oidc:{printable[:ACTOR_MAX_LENGTH]}"


class IssuerConfig(BaseModel):
    """One issuer, and the grants to holders of its tokens. The first grant that matches a token counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """As the tokens' claim `iss` has it, to the character."""
    audience: str
    """What the tokens' claim `aud` must contain."""
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256", "ES256"]
    clock_skew_seconds: Annotated[float, Field(ge=0, le=300)] = 30
    keys_url: SecureUrl | None = None
    """Where the issuer publishes its keys (JWKS); by default what its discovery document says."""
    ca_file: Path | None = None
    """The certificate authority of the issuer, if the system does not trust it."""
    token_file: Path | None = None
    """A bearer token to send when asking for the keys; it is read each time."""
    console_client_id: Annotated[str, StringConstraints(min_length=1)] | None = None
    """The client id of the console: with it, people can sign in to the console at this issuer."""
    console_client_secret_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")] | None = None
    """The environment variable with the secret of a confidential client; None: a public client."""
    console_scopes: Annotated[list[str], Field(min_length=1)] = ["openid", "email"]
    console_name: Annotated[str, StringConstraints(min_length=1, max_length=60)] | None = None
    """What people call the issuer; by default its host."""
    grant: Annotated[list[Grant], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.keys_url is None or self.console_client_id is not None:
            _secure(self.url)
        if self.console_client_secret_env is not None and self.console_client_id is None:
            raise ValueError("console_client_secret_env: it needs console_client_id")
        if "openid" not in self.console_scopes:
            raise ValueError("console_scopes: 'openid' must be one of them")
        return self

    @property
    def name(self) -> str:
        """What people call the issuer."""
        return self.console_name or urlsplit(self.url).hostname or self.url

    def granting(self, claims: Claims) -> dict[str, Any]:
        """Those of the claims that decide about grants and the name, and of lists only what a grant asks for."""
        actors = [grant.actor for grant in self.grant if grant.actor is not None]
        named = {name for actor in actors for _, name, _, _ in Formatter().parse(actor) if name}
        plain = {name: claims.get(name) for name in ("sub", "email", "email_verified", *named)}
        kept: dict[str, Any] = {name: value for name, value in plain.items() if isinstance(value, str | int)}
        for name, wanted in (pair for grant in self.grant for pair in grant.claims.items()):
            found = claims.get(name)
            if isinstance(found, list):
                kept[name] = [*kept.get(name, []), *(each for each in found if _matches(wanted, each))]
            elif found is not None:
                kept[name] = found
        return kept

    def identity(self, claims: Claims) -> Identity | None:
        """The identity of a verified token; None if no grant matches it."""
        grant = next((grant for grant in self.grant if grant.matches(claims)), None)
        if grant is None:
            return None
        agents = None if grant.agents is None else tuple(grant.agents)
        return Identity(grant.actor_of(claims), frozenset(grant.scopes), agents)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: Annotated[list[IssuerConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_each_issuer_once(self) -> Self:
        urls = [issuer.url for issuer in self.issuer]
        if len(set(urls)) < len(urls):
            raise ValueError("issuer: each url must be there once")
        return self


def read_grants(path: Path) -> list[IssuerConfig]:
    """The issuers in the file. Raises `GrantsInvalid`."""
    try:
        return _File.model_validate(tomllib.loads(path.read_text())).issuer
    except OSError as error:
        raise GrantsInvalid(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GrantsInvalid(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise GrantsInvalid(f"{path}: {f'{field}: ' if field else ''}{message}.") from error


def _matches(wanted: str, value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    if wanted.endswith(PREFIX_MARK):
        return any(isinstance(each, str) and each.startswith(wanted[:-1]) for each in values)
    return any(_text(each) == wanted for each in values if each is not None)


def _text(value: object) -> str:
    """A claim as text: `true` and `false` as in JSON; empty for what is no plain value."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else ""
