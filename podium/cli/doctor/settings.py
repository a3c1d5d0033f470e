"""`podium doctor` on the settings: all of them valid, the secrets strong, nothing open to others by accident."""

from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import ValidationError

from podium.cli.doctor.checks import Check, Examination
from services.settings import EARLIER_NAMES, Settings, variable_of

# Set for the command line alone.
OTHER_NAMES = {"PODIUM_API_URL"}
# 32 characters of what `openssl rand` or `token_urlsafe` prints cannot be guessed.
SECRET_LENGTH = 32
API_KEY_LENGTH = 20

about = Examination("settings")


def read_settings(environment: Mapping[str, str]) -> tuple[Settings, list[Check]]:
    """The settings, those that are not valid at their defaults, and what there is to say about them."""
    names = {variable_of(field): field for field in Settings.model_fields} | EARLIER_NAMES
    given: dict[str, object] = {names[name]: value for name, value in environment.items() if name in names}
    checks: list[Check] = []
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = variable_of(str(problem["loc"][0]))
            field = names[name]
            given[field] = Settings.model_fields[field].get_default()
            checks.append(about.failed(f"{name} is not valid: {problem['msg']}", "correct it, or leave it out"))
        settings = Settings.model_validate(given)
    checks += [_unknown(name, names) for name in environment if name not in names.keys() | OTHER_NAMES]
    return settings, [*checks, *_missing(settings), _secret_key(settings), _bind(settings)]


def _unknown(name: str, known: Mapping[str, str]) -> Check:
    [*near] = get_close_matches(name, [*known, *OTHER_NAMES], n=1)
    meant = f"did you mean {near[0]}?" if near else "Podium knows no such setting"
    return about.warning(f"{name} is no setting", meant)


def _missing(settings: Settings) -> list[Check]:
    return [
        about.failed(
            f"{variable_of(field)} is not set",
            f"set it, such as {Settings.model_fields[field].description}; 'podium up' writes .podium/podium.env",
        )
        for field in ("database_url", "amqp_url")
        if not getattr(settings, field).get_secret_value()
    ]


def _secret_key(settings: Settings) -> Check:
    length = len(settings.secret_key.get_secret_value())
    if not length:
        return about.failed(
            "PODIUM_SECRET_KEY is not set",
            "set it to what 'openssl rand -base64 32' prints, the same on every API process",
        )
    if length < SECRET_LENGTH:
        return about.warning(
            f"PODIUM_SECRET_KEY has {length} characters only",
            "agents' keys can be guessed: take what 'openssl rand -base64 32' prints; they change with it",
        )
    return about.ok("PODIUM_SECRET_KEY is long enough")


def _bind(settings: Settings) -> Check:
    key = settings.api_key.get_secret_value()
    if settings.on_loopback:
        return about.ok(f"the API serves this machine only ({settings.host}){', with a key' if key else ''}")
    if not key:
        return about.failed(
            f"PODIUM_HOST={settings.host} serves others without a key",
            "set PODIUM_API_KEY, or PODIUM_HOST=127.0.0.1",
        )
    if len(key) < API_KEY_LENGTH:
        return about.warning(
            f"PODIUM_API_KEY has {len(key)} characters only", "take what 'openssl rand -base64 32' prints"
        )
    return about.ok(f"the API serves others with a key ({settings.host})")
