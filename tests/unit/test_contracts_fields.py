import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from contracts.events import event_sequence
from contracts.fields import (
    ADDRESS_MAX_LENGTH,
    MAX_LEVELS,
    TRACEPARENT_PATTERN,
    AgentName,
    DeploymentId,
    Image,
    Moment,
    ServiceAddress,
    UrlPath,
    check_storable,
)
from contracts.topology import agent_of_key, registration_key


def accepts(field: Any, value: object) -> bool:
    """Whether a field of this type takes the value."""
    try:
        TypeAdapter(field).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", ["a", "0", "a-b", "support-bot", "a--b", "a" * 63, "7" * 63])
def test_an_agent_name_is_a_dns_label(name: str) -> None:
    """A name has 1 to 63 lower-case letters, digits and inner hyphens, and survives a routing key."""
    assert accepts(AgentName, name)
    assert agent_of_key(registration_key(name)) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a.b", "a b", "a\n", "\na", "a\x00", "é", "a" * 64, "a/b", "agent.a"]
)
def test_nothing_else_is_an_agent_name(name: str) -> None:
    """Characters with a meaning in routing keys, paths or log lines are refused."""
    assert not accepts(AgentName, name)
    assert agent_of_key(registration_key(name)) is None


@pytest.mark.parametrize(
    "key", ["", "agent", "agent.", "bot", "agents.bot", "agent.bot.x", "agent.agent.", "Agent.bot"]
)
def test_a_malformed_routing_key_names_no_agent(key: str) -> None:
    """Only `agent.<name>` with a valid name is accepted."""
    assert agent_of_key(key) is None


@pytest.mark.parametrize("deployment_id", ["v1", "0", "A.b_c-d", "6f0f5a3e-0000-4000-8000-000000000000", "a" * 128])
def test_a_deployment_id_may_be_a_uuid_a_tag_or_a_hash(deployment_id: str) -> None:
    """An id has 1 to 128 letters, digits, dots, underscores and hyphens, and starts with a letter or digit."""
    assert accepts(DeploymentId, deployment_id)


@pytest.mark.parametrize("deployment_id", ["", ".a", "-a", "_a", "a b", "a/b", "a\n", "a\x00", "é", "a" * 129, "a:b"])
def test_nothing_else_is_a_deployment_id(deployment_id: str) -> None:
    """Characters that need escaping in a URL path are refused."""
    assert not accepts(DeploymentId, deployment_id)


ADDRESSES = [
    "http://h",
    "http://h/",
    "https://h:8443/base//x/",
    "HTTP://Host.Example",
    "http://10.0.0.7:8000",
    "http://[::1]:80",
    "http://[2001:db8::7]",
    "http://my_service:8000",
    "http://bot.team.svc.cluster.local.:80/%7Ex;v=1",
    "http://h:65535",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_comes_back_byte_for_byte(address: str) -> None:
    """The address is not normalised: no slash is added, no character changed."""
    assert TypeAdapter(ServiceAddress).validate_python(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "h",
        "h:80",
        "//h",
        "ftp://h",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http:h",
        "http://",
        "http:///x",
        "http://:80",
        "http://h:0",
        "http://h:65536",
        "http://h:-1",
        "http://h:x",
        "http://a:b:c",
        "http://user@h",
        "http://user:password@h",
        "http://@h",
        "http://h?x=1",
        "http://h?",
        "http://h#x",
        "http://h#",
        "http://h /x",
        " http://h",
        "http://h\n",
        "http://h\t",
        "http://h\x00",
        "http://höst",
        "http://h/\u00fc",
        "http://h\\evil",
        "http://h\\.evil/",
        "http://%41",
        "http://x%00y",
        "http://a..b",
        "http://.",
        "http://-h",
        "http://h<b>",
        'http://"h"',
        "http://[",
        "http://]",
        "http://[]",
        "http://[::1",
        "http://[::1]evil",
        "http://[::g]",
        "http://[1.2.3.4]",
        "http://[v1.x]",
        "http://[fe80::1%25eth0]",
        "http://[::1%lo]",
        "http://[::1]:80@10.0.0.7",
        "http://\uff11\uff12\uff17.0.0.1",  # full-width digits
        "http://\u2460\u2461\u2466.0.0.1",  # circled digits
        "http://\u0661\u0662\u0667.0.0.1",  # Arabic digits
        "http://127\u30020\u30020\u30021",  # ideographic full stops
        "http://127.0.0.1:\uff18\uff10",
        "http://127.0.0.1:+80",
        "http://127.0.0.1:0x50",
        "http://%31%32%37.0.0.1",
        "http://127%2e0.0.1",
        "http://10.0.0.7%2f@127.0.0.1",
        "http://10.0.0.7%00.internal",
        "http://10.0.0.7\\@127.0.0.1",
        "http://10.0.0.7#@127.0.0.1",
        "http://10.0.0.7?@127.0.0.1",
        "http://10.0.0.7:80:@127.0.0.1",
        "http://10.0.0.7,127.0.0.1",
        "http://10.0.0.7;127.0.0.1",
        "http://10.0.0.7 127.0.0.1",
        "http:/127.0.0.1",
        "http:127.0.0.1",
        "http:\\\\127.0.0.1",
        "http://localhos\u0442",  # a Cyrillic letter
        "http://localhost\u00ad",  # a soft hyphen
        "gopher://127.0.0.1",
        "unix:///var/run/postgresql",
        "http://" + "a" * 64,
        "http://" + "a." * 127 + "aa",
        "http://h/" + "a" * ADDRESS_MAX_LENGTH,
    ],
)
def test_an_address_that_url_parsers_could_read_in_two_ways_is_refused(address: str) -> None:
    """An address has http or https, a host, an optional port and path; no credentials, query or fragment."""
    assert not accepts(ServiceAddress, address)


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ("/api", True),
        ("api", True),
        ("/", True),
        ("/a/b;c=d&e=f%20", True),
        ("!", True),
        ("/" * 512, True),
        ("", False),
        ("/" * 513, False),
        ("/a?b", False),
        ("/a#b", False),
        ("/a b", False),
        ("/a\n", False),
        ("/\x00", False),
        ("/é", False),
        ("/a\x7f", False),
    ],
)
def test_a_path_has_no_query_or_fragment(path: str, *, fine: bool) -> None:
    """A path has 1 to 512 printable ASCII characters, without space, `?` and `#`."""
    assert accepts(UrlPath, path) is fine


@pytest.mark.parametrize(
    ("image", "fine"),
    [
        ("bot", True),
        ("registry.example:5000/team/bot@sha256:abc", True),
        ("a" * 1024, True),
        ("", False),
        ("a b", False),
        ("bot\n", False),
        ("bot\x00", False),
        ("a" * 1025, False),
    ],
)
def test_an_image_is_one_printable_word(image: str, *, fine: bool) -> None:
    """An image has 1 to 1024 characters, without spaces and control characters."""
    assert accepts(Image, image) is fine


@pytest.mark.parametrize(
    "value",
    ["\x00", "a\x00b", "\ud800", ["\udfff"], {"\x00": 1}, {"a": [{"b": "\ud800x"}]}, math.inf, [-math.inf], math.nan],
)
def test_a_value_that_postgresql_cannot_store_as_json_is_refused(value: object) -> None:
    """NUL, lone surrogates and numbers beyond a double are refused at any depth, in keys as in values."""
    with pytest.raises(ValueError, match="must not contain"):
        check_storable(value)


@pytest.mark.parametrize("nest", [lambda value: [value], lambda value: {"a": value}], ids=["arrays", "objects"])
def test_a_value_that_is_nested_too_deep_is_refused(nest: Callable[[object], object]) -> None:
    """G54: 32 levels of arrays and objects are accepted, one more is not, and many more do not break the check."""
    value: object = 0
    for _ in range(MAX_LEVELS):
        value = nest(value)
    assert check_storable(value) is value
    for _ in range(1000):
        value = nest(value)
        with pytest.raises(ValueError, match="must not be nested deeper than 32 levels"):
            check_storable(value)


def test_a_value_that_postgresql_can_store_as_json_is_unchanged() -> None:
    """Surrogate pairs, control characters other than NUL, and big numbers are accepted."""
    deep: object = 0
    for _ in range(MAX_LEVELS - 1):
        deep = [deep]
    value = {"emoji": "\U0001f600", "control": "\x01\x7f", "big": 10**300, "tiny": 5e-324, "none": None, "deep": deep}
    assert check_storable(value) is value


@pytest.mark.parametrize(
    ("written", "in_utc"),
    [
        ("2026-07-01T12:00:00Z", "2026-07-01T12:00:00+00:00"),
        ("2026-07-01T14:00:00+02:00", "2026-07-01T12:00:00+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
        ("0001-01-01T01:00:00+01:00", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"),
        ("9999-12-31T22:59:59-01:00", "9999-12-31T23:59:59+00:00"),
    ],
)
def test_a_moment_is_kept_in_utc(written: str, in_utc: str) -> None:
    """A time with any offset is converted to UTC, up to the ends of the calendar."""
    assert TypeAdapter(Moment).validate_python(written).isoformat() == in_utc


@pytest.mark.parametrize(
    "written",
    [
        "2026-07-01T12:00:00",
        "2026-07-01",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "10000-01-01T00:00:00Z",
        "0000-12-31T00:00:00Z",
        "yesterday",
        "",
        None,
        math.inf,
        math.nan,
        1e300,
    ],
)
def test_a_moment_without_offset_or_beyond_the_calendar_is_refused(written: object) -> None:
    """A naive time says nothing, and one that leaves the years 1 to 9999 in UTC cannot be stored."""
    assert not accepts(Moment, written)


def test_sequences_sort_as_text_as_they_do_as_numbers() -> None:
    """A consumer may compare sequences as strings."""
    numbers = [1, 9, 10, 99, 100, 10**18]
    assert sorted(map(event_sequence, numbers)) == [event_sequence(number) for number in numbers]
    assert {len(event_sequence(number)) for number in numbers} == {20}


@pytest.mark.parametrize(
    ("traceparent", "fine"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("00-0af7-b7ad-01", False),
        ("", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", False),
    ],
)
def test_a_trace_context_has_the_form_of_w3c(traceparent: str, *, fine: bool) -> None:
    """Anything else is no trace context and is not passed on."""
    assert bool(re.fullmatch(TRACEPARENT_PATTERN, traceparent)) is fine
