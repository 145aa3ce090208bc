"""Absolute addresses behind proxies: from those that are trusted, and from nobody else."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.app import create_app
from service.http.public_address import is_trusted, public_address
from service.settings import Settings
from tests.service.client import Client

TRUSTED = Settings().trusted_proxies


def address(peer="127.0.0.1", public_url=None, trusted=TRUSTED, host="inside:8000", **headers):
    sent = {"host": host, **headers} if host is not None else headers
    scope = {
        "type": "http",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": (peer, 1234),
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, values in sent.items()
            for value in ([values] if isinstance(values, str) else values)
        ],
    }
    return public_address(scope, public_url, trusted)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "http://inside:8000"),
        ({"x_forwarded_proto": "https"}, "https://inside:8000"),
        ({"x_forwarded_proto": "HTTPS , http"}, "https://inside:8000"),
        ({"x_forwarded_proto": ["https", "http"]}, "https://inside:8000"),
        ({"x_forwarded_proto": "gopher"}, "http://inside:8000"),
        ({"x_forwarded_host": "a.example"}, "http://a.example"),
        ({"x_forwarded_host": "a.example:8443, b.example"}, "http://a.example:8443"),
        ({"x_forwarded_host": "[2001:db8::1]:80"}, "http://[2001:db8::1]:80"),
        ({"x_forwarded_host": "a.example/evil?"}, "http://inside:8000"),
        ({"x_forwarded_host": "a@b"}, "http://inside:8000"),
        ({"x_forwarded_prefix": "/sid/"}, "http://inside:8000/sid"),
        ({"x_forwarded_prefix": "/a, /b"}, "http://inside:8000/a/b"),
        ({"x_forwarded_prefix": ["/a", "/b"]}, "http://inside:8000/a/b"),
        ({"x_forwarded_prefix": "/"}, "http://inside:8000"),
        ({"x_forwarded_prefix": "//evil.example"}, "http://inside:8000"),
        ({"x_forwarded_prefix": "/a?b#c"}, "http://inside:8000"),
        ({"forwarded": "for=1.2.3.4;proto=https;host=a.example"}, "https://a.example"),
        (
            {"forwarded": 'For="[::1]:9";PROTO=https; Host="a.example:8443"'},
            "https://a.example:8443",
        ),
        ({"forwarded": "proto=https;host=a.example, proto=http;host=b"}, "https://a.example"),
        ({"forwarded": ["proto=https;host=a.example", "proto=http"]}, "https://a.example"),
        ({"forwarded": "for=unknown, proto=https"}, "https://inside:8000"),
        ({"forwarded": 'for="a,proto=https";host=a.example'}, "http://a.example"),
        ({"forwarded": 'host="a.exa\\mple"'}, "http://a.example"),
        ({"forwarded": 'proto="https'}, "http://inside:8000"),
        ({"forwarded": "proto=https\t;\thost=a.example"}, "https://a.example"),
        ({"forwarded": 'proto="https"host=a.example'}, "http://inside:8000"),
        ({"forwarded": "proto=ftp;host=a b"}, "http://inside:8000"),
        ({"forwarded": "proto=https", "x_forwarded_host": "a.example"}, "https://a.example"),
        ({"forwarded": "proto=https", "x_forwarded_proto": "http"}, "https://inside:8000"),
        ({"forwarded": "proto=https", "x_forwarded_prefix": "/sid"}, "https://inside:8000/sid"),
        ({"host": "evil.example/x"}, "http://127.0.0.1:8000"),
        ({"host": None}, "http://127.0.0.1:8000"),
    ],
)
def test_what_a_trusted_proxy_says(headers, expected):
    assert address(**headers) == expected
    assert address(**headers, public_url="https://p.example/sid") == "https://p.example/sid"


@pytest.mark.parametrize("filling", [" ", "\t", "a", "a=", '"', '="\\', "a=b;", ", ;"])
def test_no_header_takes_more_than_its_length_in_time(filling):
    """A proxy passes its clients' headers on, and the event loop waits for us."""
    started = time.process_time()
    filled = "," + filling * (60_000 // len(filling)) + ","
    address(forwarded=filled, x_forwarded_host=filled, x_forwarded_prefix="/a" * 9999)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::1", "::ffff:203.0.113.9", ""])
def test_what_anybody_else_says_means_nothing(peer):
    lies = {
        "forwarded": "proto=https;host=evil.example",
        "x_forwarded_proto": "https",
        "x_forwarded_host": "evil.example",
        "x_forwarded_prefix": "/evil",
    }
    assert address(peer, **lies) == "http://inside:8000"
    assert address(peer, **lies, trusted="*") == "https://evil.example/evil"


@pytest.mark.parametrize(
    ("peer", "trusted", "expected"),
    [
        ("127.0.0.1", TRUSTED, True),
        ("127.9.9.9", TRUSTED, True),
        ("::1", TRUSTED, True),
        ("::ffff:127.0.0.1", TRUSTED, True),
        ("10.1.2.3", TRUSTED, False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", " 192.168.0.1 , 10.1.2.3", True),
        ("10.1.2.4", "192.168.0.1,10.1.2.3", False),
        ("2001:db8::7", "2001:db8::/32", True),
        ("127.0.0.1", "", False),
        ("", "*", True),
    ],
)
def test_proxies_are_known_by_their_addresses(peer, trusted, expected):
    assert is_trusted(peer, trusted) is expected


@given(
    st.dictionaries(
        st.sampled_from(["forwarded", "x_forwarded_proto", "x_forwarded_host", "host"]),
        st.text(st.characters(max_codepoint=255), max_size=30)
        | st.from_regex(r"(proto|host)=[a-z.:\"\\;, ]{0,9}", fullmatch=True),
    )
)
def test_whatever_is_sent_gives_an_address(headers):
    found = address(**headers)
    scheme, _, rest = found.partition("://")
    assert scheme in ("http", "https")
    assert rest
    assert not set(rest) & set(' /?#@\\"<>\r\n')


@pytest.mark.parametrize(
    "wrong",
    [
        "pictures.example",
        "ftp://a",
        "https://",
        "https://a b",
        "https://a?b",
        "https://u@a",
        "https://a:65536",
    ],
)
def test_a_public_address_that_is_none_is_named(wrong):
    with pytest.raises(ValidationError, match="an address such as https://"):
        Settings(public_url=wrong)
    assert Settings(public_url="https://a.example:1/sid/").public_url == "https://a.example:1/sid"


@pytest.mark.parametrize("wrong", ["proxy", "10.0.0.1/8", "10.0.0.0/99", "1.2.3.4 5.6.7.8"])
def test_proxies_that_are_none_are_named(wrong):
    with pytest.raises(ValidationError, match="addresses or networks such as 10"):
        Settings(trusted_proxies=wrong)


@pytest.mark.parametrize("public_url", [None, "https://pictures.example/sid"])
def test_whatever_writes_an_address_writes_the_public_one(settings, public_url):
    headers = {
        "x-forwarded-proto": "https, http",
        "x-forwarded-host": "pictures.example",
        "x-forwarded-prefix": "/sid",
    }
    with Client(create_app(settings.model_copy(update={"public_url": public_url}))) as client:
        body = {"prompt": "2", "response_format": "url", "seed": 7}
        said = client.request("POST", "/v1/images/generations", json=body, headers=headers)
        (image,) = said.json()["data"]
        assert image["url"].startswith("https://pictures.example/sid/generate?")
        document = client.get("/openapi.json", headers=headers).json()
        assert document["servers"] == [{"url": "https://pictures.example/sid"}]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_name_no_address_of_their_own(client, path):
    """They are relative to where the browser found them, so that any proxy's prefix will do."""
    page = client.get(path).text
    links = re.findall(r"""(?:href|src)=["']([^"']+)|url: '([^']+)'""", page)
    assert len(links) > 3
    for link in filter(None, (one for pair in links for one in pair)):
        assert not link.startswith("/"), link
        assert "//" not in link, link
        if not link.startswith("#"):
            answer = client.get(f"/{link}")
            if answer.status_code == 307:
                link = answer.headers["location"]
                assert not link.startswith("/"), link
                answer = client.get(f"/{link}")
            assert answer.status_code == 200, link
