"""The cache before the gateway: pinned images are drawn once, and nothing else is ever kept."""

import asyncio
import re
import signal
import subprocess
from collections import Counter

import httpx
import pytest

from service.http.security import new_key
from tests.bundles import served_tag, write_bundle
from tests.deploy.nginx import NGINX, configure, needs_nginx, proxying
from tests.service.test_process import serving
from tests.service.waiting import happens

pytestmark = [pytest.mark.slow, needs_nginx]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def gateway(models):
    with serving(models) as (_, url):
        yield url


@pytest.fixture(scope="module")
def cached(gateway, tmp_path_factory):
    """A client of nginx before the gateway."""
    with (
        proxying(tmp_path_factory.mktemp("nginx"), [gateway.removeprefix("http://")]) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        yield http


@pytest.fixture
def tag(models):
    return served_tag(models / "tiny")


def asked(gateway):
    """Answers of /generate that the gateway has given."""
    text = httpx.get(f"{gateway}/metrics").text
    found = re.findall(r'^sid_requests_total\{.*route="/generate".*\} (\S+)', text, re.M)
    return sum(map(float, found))


def test_nginx_accepts_the_configuration(tmp_path):
    main = configure(tmp_path, ["127.0.0.1:8000", "127.0.0.1:8001"], 8080)
    command = [NGINX, "-t", "-p", tmp_path, "-c", main]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def test_a_pinned_image_is_drawn_once(gateway, cached, tag):
    before = asked(gateway)
    first = cached.get("/generate", params={"model": tag, "seed": 1, "class_label": "Dress"})
    again = cached.get("/generate", params={"model": tag, "seed": 1, "class_label": "Dress"})
    assert (first.status_code, again.status_code) == (200, 200)
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("MISS", "HIT")
    assert first.content == again.content
    assert asked(gateway) == before + 1
    for name in ("etag", "cache-control", "x-seed", "x-class-label", "x-model", "content-type"):
        assert first.headers[name] == again.headers[name]
    assert "immutable" in again.headers["cache-control"]
    # What belongs to one request is not another's.
    assert "engine;dur=" in first.headers["server-timing"]
    assert again.headers["server-timing"] == 'cache;desc="hit"'
    assert first.headers["x-request-id"] != again.headers["x-request-id"]


def test_a_colon_may_be_escaped(cached, tag):
    address = f"/generate?seed=2&model={tag.replace(':', '%3A')}"
    assert [cached.get(address).headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]


def test_forms_are_kept_apart(cached, tag):
    for turn in ("MISS", "HIT"):
        for form, begins in (("image/png", b"\x89PNG"), ("image/webp", b"RIFF")):
            where = {"model": tag, "seed": 3}
            answer = cached.get("/generate", params=where, headers={"accept": form})
            assert (answer.headers["content-type"], answer.headers["x-cache"]) == (form, turn)
            assert answer.content.startswith(begins)


def test_who_has_the_image_is_told_so_without_the_gateway(gateway, cached, tag):
    where = {"model": tag, "seed": 4}
    etag = cached.get("/generate", params=where).headers["etag"]
    before = asked(gateway)
    answer = cached.get("/generate", params=where, headers={"if-none-match": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert asked(gateway) == before


def test_of_many_who_ask_at_once_one_goes_to_the_gateway(gateway, cached, tag):
    async def ask_at_once():
        async with httpx.AsyncClient(base_url=cached.base_url, timeout=30) as http:
            asking = (http.get("/generate", params={"model": tag, "seed": 5}) for _ in range(32))
            return await asyncio.gather(*asking)

    before = asked(gateway)
    answers = asyncio.run(ask_at_once())
    assert len({answer.content for answer in answers}) == 1
    assert {answer.status_code for answer in answers} == {200}
    assert asked(gateway) == before + 1


def test_nothing_else_is_kept(gateway, cached, tag):
    weights = tag.rpartition(":")[0]  # without the graph
    old = re.sub(r":[0-9a-f]{12}:", ":0123456789ab:", tag)
    before = asked(gateway)
    for _ in range(2):
        for model, status in ((None, 200), ("tiny", 200), (weights, 200), (old, 404)):
            given = {"seed": 6} | ({"model": model} if model else {})
            answer = cached.get("/generate", params=given)
            assert answer.status_code == status
            assert answer.headers.get("x-cache") != "HIT"
        assert cached.get("/generate", params={"model": tag, "seed": -1}).status_code == 422
        assert cached.post("/generate", json={"model": tag, "seed": 6}).status_code == 200
    assert asked(gateway) == before + 12


def test_a_clients_own_request_id_is_passed_on(cached, tag):
    named = {"x-request-id": "order-66"}
    for seed in (7, 7, 8):  # drawn, from the cache, drawn
        answer = cached.get("/generate", params={"model": tag, "seed": seed}, headers=named)
        assert answer.headers["x-request-id"] == "order-66"


def test_the_rest_of_the_server_is_there_but_for_its_metrics(cached):
    assert cached.get("/models").status_code == 200
    assert cached.get("/metrics").status_code == 404
    url = {"prompt": "Dress", "response_format": "url", "seed": 1}
    (image,) = cached.post("/v1/images/generations", json=url).json()["data"]
    assert image["url"].startswith(str(cached.base_url).rstrip("/"))  # as nginx was asked
    assert cached.get(image["url"]).headers["content-type"] == "image/png"


def test_with_keys_nothing_is_kept(models, tag, tmp_path):
    """One who has a key would else draw for all who have none."""
    key = new_key("alice")
    (tmp_path / "keys").write_text(f"{key.line}\n")
    with (
        serving(models, SID_KEYS=str(tmp_path / "keys")) as (_, url),
        proxying(tmp_path, [url.removeprefix("http://")]) as front,
    ):
        where = {"model": tag, "seed": 1}
        for _ in range(2):
            answer = httpx.get(f"{front}/generate", params=where, headers={"x-api-key": key.secret})
            assert (answer.status_code, answer.headers["x-cache"]) == (200, "MISS")
        assert httpx.get(f"{front}/generate", params=where).status_code == 401


def test_a_gateway_that_is_gone_is_passed_over_and_what_is_kept_outlives_all(models, tag, tmp_path):
    with serving(models) as (process, url), serving(models) as (other, second):
        addresses = [one.removeprefix("http://") for one in (url, second)]
        with proxying(tmp_path, addresses) as front, httpx.Client(base_url=front) as http:
            where = {"model": tag, "seed": 1}
            drawn = http.get("/generate", params=where)
            process.kill()
            process.wait()
            for seed in range(2, 10):
                answer = http.get("/generate", params={"model": tag, "seed": seed})
                assert answer.status_code == 200
                assert http.post("/generate", json={"seed": seed}).status_code == 200
            other.kill()
            other.wait()
            assert http.get("/generate", params={"model": tag, "seed": 99}).status_code == 502
            kept = http.get("/generate", params=where)
            assert (kept.status_code, kept.content) == (200, drawn.content)


def test_a_gateway_that_ends_in_an_orderly_way_costs_no_request(models, tmp_path):
    """Nginx sends to it until it is gone, so what meets a closed socket is asked of the other."""
    drains = {"SID_DRAIN_SECONDS": "1"}

    async def draw(front, process):
        found, gone = Counter(), asyncio.Event()

        async def client(http, seed):
            while not gone.is_set():
                seed += 100
                if seed % 2:
                    answer = await http.get("/generate", params={"seed": seed})
                else:
                    answer = await http.post("/generate", json={"seed": seed})
                found[answer.status_code] += 1

        async with httpx.AsyncClient(base_url=front, timeout=30) as http:
            clients = [asyncio.create_task(client(http, seed)) for seed in range(12)]
            await happens(lambda: found.total() >= 100)
            process.send_signal(signal.SIGTERM)
            await happens(lambda: process.poll() is not None)
            before = found.total()
            await happens(lambda: found.total() >= before + 100)
            gone.set()
            await asyncio.gather(*clients)
        return found

    with serving(models, **drains) as (process, url), serving(models, **drains) as (_, second):
        addresses = [one.removeprefix("http://") for one in (url, second)]
        with proxying(tmp_path, addresses) as front:
            found = asyncio.run(draw(front, process))
    assert process.returncode == 0
    assert set(found) == {200}, found
