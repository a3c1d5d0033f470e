from podium.cli.doctor.checks import Verdict, host_and_port
from podium.cli.doctor.settings import check_settings

SECRET = "0123456789abcdef0123456789abcdef"
GOOD = {
    "PODIUM_DATABASE_URL": "postgresql://u:p@127.0.0.1:5432/podium",
    "PODIUM_AMQP_URL": "amqp://u:p@127.0.0.1:5672/",
    "PODIUM_SECRET_KEY": SECRET,
    "PODIUM_API_URL": "http://127.0.0.1:8080",
}


def findings(**changes: str) -> dict[Verdict, list[str]]:
    """The findings with these settings changed; empty ones are left out."""
    environment = {name: value for name, value in {**GOOD, **changes}.items() if value}
    _, checks = check_settings(environment)
    assert all(check.advice for check in checks if check.verdict is not Verdict.OK)
    return {verdict: [check.finding for check in checks if check.verdict is verdict] for verdict in Verdict}


def test_good_settings_have_no_findings() -> None:
    """These are the settings that `podium up` writes."""
    found = findings()
    assert not found[Verdict.WARNING]
    assert not found[Verdict.FAILED]


def test_every_invalid_setting_is_named_and_the_others_are_used() -> None:
    """All in one run."""
    settings, checks = check_settings(
        {**GOOD, "PODIUM_PORT": "x", "PODIUM_LOG_LEVEL": "loud", "PODIUM_BATCH_SIZE": "7"}
    )
    failed = [check.finding for check in checks if check.verdict is Verdict.FAILED]
    assert [name.split()[0] for name in failed] == ["PODIUM_PORT", "PODIUM_LOG_LEVEL"]
    assert (settings.port, settings.batch_size) == (8080, 7)


def test_a_misspelt_name_is_reported() -> None:
    """The services ignore unknown variables silently."""
    assert findings(PODIUM_DATABSE_URL="x")[Verdict.WARNING] == ["PODIUM_DATABSE_URL is not a setting"]


def test_a_missing_secret_fails_and_a_weak_one_is_a_warning() -> None:
    """Without a secret nothing works; a short one can be guessed."""
    assert findings(PODIUM_SECRET_KEY="")[Verdict.FAILED] == ["PODIUM_SECRET_KEY is not set"]
    assert findings(PODIUM_SECRET_KEY="short")[Verdict.WARNING] == ["PODIUM_SECRET_KEY has only 5 characters"]
    assert len(findings(PODIUM_DATABASE_URL="", PODIUM_AMQP_URL="")[Verdict.FAILED]) == 2


def test_an_api_that_is_open_to_other_machines_needs_a_strong_key() -> None:
    """On loopback no key is needed."""
    assert "without a key" in findings(PODIUM_HOST="0.0.0.0")[Verdict.FAILED][0]  # noqa: S104 - the value under test
    assert "4 characters" in findings(PODIUM_HOST="10.0.0.7", PODIUM_API_KEY="weak")[Verdict.WARNING][0]
    assert not findings(PODIUM_HOST="10.0.0.7", PODIUM_API_KEY=SECRET)[Verdict.FAILED]


def test_no_secret_is_shown() -> None:
    """Addresses are shown without user and password."""
    assert host_and_port("postgresql://user:p%40ss@db.example:5432/podium") == "db.example:5432"
    assert host_and_port("amqp://db.example:5672/") == "db.example:5672"
