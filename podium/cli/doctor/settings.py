"""Checks of the settings: all are valid, secrets are long enough, and the API is not open to others without a key."""

from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import ValidationError

from podium.cli.doctor.checks import Check, Part
from services.settings import EARLIER_NAMES, Settings, variable_of

# Read only by the command line.
OTHER_NAMES = {"PODIUM_API_URL", "PODIUM_AGENT_KEY", "PODIUM_MANAGEMENT_AUTH"}
# 32 characters of `openssl rand -base64` have 192 random bits; 20 characters have 120.
SECRET_LENGTH = 32
API_KEY_LENGTH = 20

part = Part("settings")


def check_settings(environment: Mapping[str, str]) -> tuple[Settings, list[Check]]:
    """The settings, with defaults for those that are not valid, and the results of the checks."""
    field_of = {variable_of(field): field for field in Settings.model_fields} | EARLIER_NAMES
    given: dict[str, object] = {field_of[name]: value for name, value in environment.items() if name in field_of}
    checks: list[Check] = []
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = variable_of(str(problem["loc"][0]))
            field = field_of[name]
            given[field] = Settings.model_fields[field].get_default()
            checks.append(
                part.failed(f"{name} is not valid: {problem['msg']}", "correct it, or unset it to use the default")
            )
        settings = Settings.model_validate(given)
    checks += [_unknown(name, field_of) for name in environment if name not in field_of.keys() | OTHER_NAMES]
    return settings, [*checks, *_missing(settings), _secret_key(settings), _bind(settings)]


def _unknown(name: str, known: Mapping[str, str]) -> Check:
    near = get_close_matches(name, [*known, *OTHER_NAMES], n=1)
    advice = f"did you mean {near[0]}?" if near else "unset it"
    return part.warning(f"{name} is not a setting", advice)


def _missing(settings: Settings) -> list[Check]:
    return [
        part.failed(
            f"{variable_of(field)} is not set",
            f"set it in the form {Settings.model_fields[field].description}; 'podium up' writes .podium/podium.env",
        )
        for field in ("database_url", "amqp_url")
        if not getattr(settings, field).get_secret_value()
    ]


def _secret_key(settings: Settings) -> Check:
    length = len(settings.secret_key.get_secret_value())
    if not length:
        return part.failed(
            "PODIUM_SECRET_KEY is not set",
            "set it to the output of 'openssl rand -base64 32', the same for every API process",
        )
    if length < SECRET_LENGTH:
        return part.warning(
            f"PODIUM_SECRET_KEY has only {length} characters",
            "use the output of 'openssl rand -base64 32'; this changes the keys of all agents",
        )
    return part.ok("PODIUM_SECRET_KEY is long enough")


def _bind(settings: Settings) -> Check:
    key = settings.api_key.get_secret_value()
    if settings.on_loopback:
        return part.ok(f"the API listens on loopback only ({settings.host}){', with a key' if key else ''}")
    if not key:
        return part.failed(
            f"PODIUM_HOST={settings.host} lets other machines use the API without a key",
            "set PODIUM_API_KEY, or PODIUM_HOST=127.0.0.1",
        )
    if len(key) < API_KEY_LENGTH:
        return part.warning(
            f"PODIUM_API_KEY has only {len(key)} characters", "use the output of 'openssl rand -base64 32'"
        )
    return part.ok(f"the API listens on {settings.host} and requires a key")
