"""Pages of other origins: let in where SID_CORS_ORIGINS says so, errors and keys included."""

import shutil
import socket

import httpx
import pytest
from playwright.sync_api import sync_playwright
from pydantic import ValidationError

from service.addresses import origins
from service.app import create_app
from service.http.security import new_key
from service.settings import Settings
from tests.service.client import Client
from tests.service.test_process import serving

PAGE, OTHER = "https://app.example", "https://evil.example"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def opened(settings, allowed, **changes):
    return Client(create_app(settings.model_copy(update={"cors_origins": allowed, **changes})))


def preflight(client, origin=PAGE, path="/generate", method="POST", asked="content-type,x-api-key"):
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": asked,
    }
    return client.request("OPTIONS", path, headers=headers)


def allowed_origin(answer):
    return answer.headers.get("access-control-allow-origin")


def test_off_by_default(client):
    answers = [preflight(client), client.get("/generate?seed=7", headers={"origin": PAGE})]
    assert [answer.status_code for answer in answers] == [405, 200]
    for answer in answers:
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "Origin" not in answer.headers.get("vary", "")


@pytest.mark.parametrize("allowed", [f"https://first.example, {PAGE}/", "*"])
def test_a_preflight_says_what_a_page_may_send(settings, allowed):
    with opened(settings, allowed) as client:
        answer = preflight(client, asked="authorization,content-type,x-stainless-os")
    assert (answer.status_code, answer.content) == (204, b"")
    assert allowed_origin(answer) == ("*" if allowed == "*" else PAGE)
    assert set(answer.headers["access-control-allow-methods"].split(", ")) == {
        "GET",
        "HEAD",
        "POST",
    }
    sent = answer.headers["access-control-allow-headers"]
    assert sent == "authorization,content-type,x-stainless-os"
    assert "access-control-allow-credentials" not in answer.headers
    assert "x-request-id" in answer.headers


def test_a_page_reads_what_says_how_to_draw_it_again(settings):
    with opened(settings, PAGE) as client:
        answer = client.request("POST", "/generate", json={}, headers={"origin": PAGE})
    exposed = {name.lower() for name in answer.headers["access-control-expose-headers"].split(", ")}
    assert {"x-seed", "x-model", "x-class-label", "server-timing", "etag"} <= exposed
    assert {"retry-after", "x-request-id", "x-priority"} <= exposed
    ours = {name for name in answer.headers if name.startswith("x-")}
    assert ours <= exposed


@pytest.mark.parametrize(
    "origin", [OTHER, f"{PAGE}.evil.example", "http://app.example", "null", ""]
)
def test_other_origins_are_not_let_in(settings, origin):
    with opened(settings, PAGE) as client:
        assert preflight(client, origin).status_code == 405
        for answer in (
            preflight(client, origin),
            client.get("/generate?seed=7", headers={"origin": origin}),
            client.get("/generate?seed=7"),
        ):
            assert allowed_origin(answer) is None
            # Or a cache would hand what they got to a page that needs the header.
            assert "Origin" in answer.headers["vary"]


def test_caches_need_not_tell_origins_apart_where_all_are_let_in(settings):
    with opened(settings, "*") as client:
        for headers in ({}, {"origin": PAGE}, {"origin": "null"}):
            answer = client.get("/generate?seed=7", headers=headers)
            assert allowed_origin(answer) == "*"
            assert answer.headers["vary"] == "Accept"


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [PAGE, "*"])
def test_errors_may_be_read_too(settings, tmp_path, monkeypatch, allowed):
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    with opened(settings, allowed, keys=tmp_path / "keys", max_body_bytes=100) as client:
        assert preflight(client).status_code == 204, "browsers send no key along"
        common = {"origin": PAGE}
        known = common | {"x-api-key": made.secret}
        asked = [
            ("GET", "/models", common, None, 401),
            ("GET", "/models", common | {"x-api-key": "x"}, None, 403),
            ("GET", "/nothing", known, None, 404),
            ("DELETE", "/generate", known, None, 405),
            ("POST", "/generate", known | {"accept": "text/html"}, {}, 406),
            ("POST", "/generate", known, {"model": "x" * 200}, 413),
            ("POST", "/generate", known, {"seed": -1}, 422),
            # From here on every request fails.
            ("GET", "/generate?seed=7", known, None, 500),
            ("POST", "/generate", known, {"seed": 7}, 500),
            ("POST", "/v1/images/generations", known, {"prompt": "2"}, 500),
        ]
        for method, path, headers, body, status in asked:
            if status == 500:
                for name in ("generate", "openai"):
                    monkeypatch.setattr(f"service.http.routes.{name}.resolve", None)
            answer = client.request(method, path, headers=headers, json=body)
            assert answer.status_code == status
            assert allowed_origin(answer) == ("*" if allowed == "*" else PAGE), status
            assert answer.json()["status"] == status
            assert "x-request-id" in answer.headers


@pytest.mark.parametrize(
    "wrong",
    [
        "app.example",
        "ftp://app.example",
        "https://app.example/path",
        "https://*.a",
        "https://a:65536",
        "null",
    ],
)
def test_what_is_no_origin_is_named(wrong):
    with pytest.raises(ValidationError, match="origins such as https://"):
        Settings(cors_origins=wrong)


def test_origins_are_taken_as_browsers_write_them():
    written = "HTTPS://App.Example:443/, http://b:80,http://b:8080 ,http://[::1]:3000"
    assert origins(written) == {
        "https://app.example", "http://b", "http://b:8080", "http://[::1]:3000",
    }  # fmt: skip


@pytest.mark.slow
def test_what_is_refused_before_the_application_may_be_read_too(models):
    with serving(models, SID_CORS_ORIGINS=PAGE) as (_, url):
        long = httpx.get(f"{url}/models", headers={"origin": PAGE, "x": "y" * 20_000})
    assert (long.status_code, allowed_origin(long)) == (431, PAGE)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (Debian: chromium)")
def test_in_a_real_browser(models, tmp_path):
    """Two names of one server are two origins."""
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"SID_CORS_ORIGINS": f"http://localhost:{port}", "SID_KEYS": str(tmp_path / "keys")}
    with (
        serving(models, "--port", str(port), log=tmp_path / "log", **settings) as (_, url),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page()
        page.goto(f"http://localhost:{port}/livez")
        ask = """async ([url, key]) => {
            const answer = await fetch(`${url}/generate`, {
                method: "POST",
                headers: {"Content-Type": "application/json", "X-API-Key": key},
                body: JSON.stringify({seed: 7}),
            });
            const read = ["X-Seed", "X-Request-ID"].map((name) => answer.headers.get(name));
            return [answer.status, read[0], read[1] !== null];
        }"""
        assert page.evaluate(ask, [url, made.secret]) == [200, "7", True]
        assert page.evaluate(ask, [url, "wrong"]) == [403, None, True]
        browser.close()
