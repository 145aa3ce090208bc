"""The client: what programs rely on, of the one that waits and the one that does not.

Here it is the server's own, service.client; that it is the same without a server, as sid_client, is
tests/service/test_client_wheel.py's to say.
"""

import asyncio
import io
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter

import httpx
import numpy as np
import pytest
from PIL import Image

import service.client
from service.client import AnswerError, AsyncClient, Client, ClientError, UnreachableError
from service.http.security import new_key
from tests.bundles import FOR_EVER, write_bundle
from tests.service.test_process import run_python, serving
from tests.service.waiting import until

pytestmark = pytest.mark.slow


class Waited:
    """An AsyncClient with the methods of Client, so that one test says it of both."""

    def __init__(self, url: str, **options) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **options: self._runner.run(method(*args, **options))

    def stream(self, *args, **options):
        images = self._client.stream(*args, **options)

        async def following():
            return await anext(images, None)

        try:
            while (image := self._runner.run(following())) is not None:
                yield image
        finally:
            self._runner.run(images.aclose())


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A real server of three classes, the first of which takes for ever to draw."""
    folder = tmp_path_factory.mktemp("client")
    write_bundle(folder / "models", turns=FOR_EVER)
    with serving(folder / "models", log=folder / "log") as (_, url):
        yield url


@pytest.fixture(params=[Client, Waited], ids=["sync", "async"])
def connect(request) -> Iterator[Callable[..., Client]]:
    """Make a client of either kind, which is closed at the end."""
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(request.param(url, **options))


@pytest.fixture
def sid(connect, url) -> Client:
    return connect(url)


class Scripted:
    """A server that answers one script after the other, the last one for ever."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.asked: list[float] = []
        script = itertools.chain(answers, itertools.repeat(answers[-1]))
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                scripted.asked.append(time.monotonic())
                status, headers, body = next(script)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self._handler = Handler

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", port), self._handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def refusal(status: int, **headers: str) -> tuple[int, dict[str, str], bytes]:
    problem = {"type": "urn:sid-serve:problem:queue-full", "status": status, "detail": "too many"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(problem).encode()
    return status, {"Content-Type": "application/problem+json"} | named, body


IMAGE = (200, {"Content-Type": "image/png", "X-Seed": "7", "X-Model": "m:1:d"}, b"\x89PNG")
PAGE = {"Content-Type": "text/html; charset=utf-8"}


def test_three_lines_save_an_image(url, tmp_path):
    with Client(url) as sid:
        sid.generate(class_label="Dress", seed=7).save(tmp_path / "dress.png")
    expected = httpx.get(f"{url}/generate?class_label=Dress&seed=7").content
    assert (tmp_path / "dress.png").read_bytes() == expected


def test_an_image_says_what_it_is(sid):
    (card,) = sid.models()
    image = sid.generate("dress", 7, model=card.tag)
    assert (image.seed, image.class_label, image.model) == (7, 2, card.tag)
    assert image.media_type == "image/png"
    assert image.timings.keys() == {"queue", "latents", "engine", "encode"}
    assert image.timings["engine"] > 0
    assert image.pixels().shape == (8, 8, 1)
    assert np.array_equal(
        image.pixels()[:, :, 0], np.asarray(Image.open(io.BytesIO(image.content)))
    )
    assert sid.generate(2).seed != sid.generate(2).seed  # left out, it is random


def test_forms_and_walks_are_the_servers(sid, url):
    webp = sid.generate(2, 7, form="webp")
    assert webp.media_type == "image/webp"
    assert webp.pixels().shape == (8, 8, 3)
    assert sid.generate(2, 7, form="jpeg").content.startswith(b"\xff\xd8")
    step = httpx.get(f"{url}/generate?class_label=2&seed=7&toward=9&mix=0.25").content
    assert sid.generate(2, 7, toward=9, mix=0.25).content == step


def test_models_are_typed_cards(sid):
    (card,) = sid.models()
    assert (card.name, card.version, card.resolution, card.channels) == ("tiny", 1, 8, 1)
    assert card.steps == 1
    assert card.classes == ("T-shirt/top", "Trouser", "Dress")
    assert card.tag == f"tiny:1:{card.digest}:float32"


def test_a_batch_is_the_images_of_consecutive_seeds(sid):
    images = sid.batch(10, 5, "Dress")
    assert [image.seed for image in images] == [10, 11, 12, 13, 14]
    for image in images:
        alone = sid.generate("Dress", image.seed)
        assert (image.content, image.class_label) == (alone.content, 2)
    with pytest.raises(AnswerError) as refused:
        sid.batch(0, 1000, 2)
    assert (refused.value.status, refused.value.members["most"]) == (413, 64)


def test_a_stream_keeps_the_order_and_takes_no_more_seeds_than_its_window(sid):
    taken = []

    def endless():
        for seed in itertools.count(100):
            taken.append(seed)
            yield seed

    stream = sid.stream(endless(), "Dress", concurrency=5)
    for count, image in enumerate(itertools.islice(stream, 30)):
        assert image.seed == 100 + count
        assert len(taken) <= count + 5
    stream.close()
    assert len(taken) <= 35


def test_a_stream_ends_with_its_seeds_or_with_the_first_error(sid):
    assert [image.seed for image in sid.stream([3, 1, 2], "Dress")] == [3, 1, 2]
    assert list(sid.stream([])) == []
    stream = sid.stream([1, -1, 2], "Dress")
    assert next(stream).seed == 1
    with pytest.raises(AnswerError, match="seed must be from 0 to"):
        next(stream)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        next(sid.stream([1], concurrency=0))


def test_closing_a_stream_early_cancels_its_requests_at_the_server(sid, url):
    def abandoned():
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(x.split()[-1]) for x in lines if 'cause="abandoned"' in x)

    before = abandoned()

    def closed_early() -> bool:
        stream = sid.stream([1, 0], concurrency=2)  # by seed: the second is of the endless class
        assert next(stream).class_label == 1
        stream.close()
        return abandoned() > before  # the second may not have arrived yet, then it is tried again

    until(closed_early)


def test_what_a_server_refuses_is_its_own_sentence_at_once(sid):
    with pytest.raises(AnswerError) as refused:
        sid.generate("Coat", 7)
    error = refused.value
    assert (error.status, error.kind) == (422, "class-out-of-range")
    assert str(error) == error.detail
    assert "tiny has 0 to 2 (T-shirt/top, Trouser, Dress)" in error.detail
    with pytest.raises(AnswerError, match="tiny:1:another is not served"):
        sid.generate(2, 7, model="tiny:1:another")


def test_a_client_has_one_priority_and_the_server_hears_it(connect, url):
    def drawn(priority: str) -> float:
        name = rf'sid_image_seconds_count\{{model="tiny",priority="{priority}"\}} (\S+)'
        return float(re.search(name, httpx.get(f"{url}/metrics").text)[1])

    before = drawn("background")
    background = connect(url, priority="background")
    background.generate(2, 7)
    background.batch(7, 2, 2)
    assert drawn("background") == before + 3
    with pytest.raises(ClientError, match="one of interactive, bulk, background, not 'soon'"):
        connect(url, priority="soon")


def test_a_rate_limited_client_comes_back_with_its_key_when_it_may(models, tmp_path):
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    limits = {"SID_KEYS": str(tmp_path / "keys"), "SID_RATE": "1", "SID_BURST": "1"}
    with serving(models, log=tmp_path / "log", **limits) as (_, url):
        with Client(url) as nobody, pytest.raises(AnswerError, match="brought none") as refused:
            nobody.models()
        assert (refused.value.status, refused.value.kind) == (401, "key-required")
        assert "give it yours as `key`" in str(refused.value)
        with (
            Client(url, key="geheim") as stranger,
            pytest.raises(AnswerError, match="the API key is wrong") as refused,
        ):
            stranger.models()
        assert (refused.value.status, refused.value.kind) == (403, "key-unknown")
        assert "geheim" not in str(refused.value) + (tmp_path / "log").read_text()
        with Client(url, key=made.secret) as alice:
            started = time.monotonic()
            alice.generate(2, 7)
            alice.generate(2, 7)
            assert time.monotonic() - started >= 0.9

        def ask_without_end(client: Client) -> None:
            while True:  # not once: on a slow machine a second may have passed before
                client.generate(2, 7)

        with (
            Client(url, key=made.secret, patience=0) as alice,
            pytest.raises(AnswerError, match="used up its rate") as refused,
        ):
            ask_without_end(alice)
        assert (refused.value.status, refused.value.retry_after) == (429, 1)


def test_a_retry_waits_for_as_long_as_the_server_says_and_not_much_longer(connect):
    server = Scripted(refusal(429, Retry_After="1"), IMAGE)
    with server.listening() as url:
        assert connect(url).generate().seed == 7
    first, second = server.asked
    assert 1 <= second - first < 10


def test_without_retry_after_pauses_grow(connect):
    server = Scripted(*[refusal(503)] * 3, IMAGE)
    with server.listening() as url:
        connect(url).generate()
    gaps = np.diff(server.asked)
    assert len(gaps) == 3
    assert all(gaps >= [0.1, 0.2, 0.4])


def test_patience_ends_before_a_wait_that_would_exceed_it(connect):
    server = Scripted(refusal(429, Retry_After="60"))
    started = time.monotonic()
    with server.listening() as url, pytest.raises(AnswerError, match="too many") as refused:
        connect(url, patience=5).generate()
    assert refused.value.kind == "queue-full"
    assert time.monotonic() - started < 50
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 502, 504])
def test_nothing_else_is_tried_again(connect, status):
    server = Scripted(refusal(status, Retry_After="0"))
    with server.listening() as url, pytest.raises(AnswerError) as refused:
        connect(url).generate()
    assert refused.value.status == status
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((502, PAGE, b"<html>\n<h1>Bad gateway</h1>"), "answered 502 Bad Gateway with text/html"),
        ((200, PAGE, b"<html>\nWelcome"), "answered 200 OK with text/html"),
        ((301, {"Location": "/"}, b""), "answered 301 Moved Permanently with nothing"),
        (
            (200, {"Content-Type": "image/png", "X-Seed": "1", "X-Inputs": "[1]"}, b""),
            "answered 200 OK with image/png",
        ),
        ((200, {"Content-Type": "application/json"}, b"[]"), "answered 200 OK with application/js"),
        ((404, {"Content-Type": "application/json"}, b'["no"]'), "answered 404 Not Found with app"),
    ],
)
def test_what_is_no_sid_serve_is_one_line(connect, answer, says):
    with Scripted(answer).listening() as url:
        client = connect(url)
        for ask in (client.generate, client.models, lambda: client.batch(0, 2)):
            with pytest.raises(AnswerError) as refused:
                ask()
            assert says in str(refused.value)
            assert "\n" not in str(refused.value)
            assert refused.value.kind == ""


def test_a_server_that_comes_back_is_found(connect):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = connect(f"http://127.0.0.1:{port}")
    drawn = []
    asking = threading.Thread(target=lambda: drawn.append(client.generate()))
    asking.start()
    time.sleep(0.3)
    with Scripted(IMAGE).listening(port):
        asking.join(timeout=20)
    assert drawn[0].seed == 7


def test_a_server_that_is_not_there_is_given_up(connect):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=f"{url} cannot be reached"):
        connect(url, patience=0.5).generate()
    assert time.monotonic() - started < 20, "by default it would be 30 s"


def test_an_answer_that_takes_too_long_is_not_waited_for_twice(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=r"no answer within 0\.3 s"):
            connect(url, timeout=0.3).generate()
        assert time.monotonic() - started < 20, "by default it would be 30 s"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "", "ftp://host", "http://"])
def test_an_address_is_checked_at_once(url):
    with pytest.raises(ClientError, match="is no address of a server, such as http://127"):
        Client(url)


def test_a_key_that_no_header_holds_is_refused_and_not_shown():
    with pytest.raises(ClientError, match="the API key holds other characters") as refused:
        Client("http://127.0.0.1:8000", key="geheim\n")
    assert "geheim" not in str(refused.value)


def test_a_closed_client_says_so_and_its_streams_end(url):
    sid = Client(url)
    stream = sid.stream(itertools.count(), "Dress")
    next(stream)
    sid.close()
    sid.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        sid.generate()
    stream.close()


def test_nothing_of_the_server_is_loaded():
    server = {"fastapi", "onnxruntime", "prometheus_client", "uvicorn", "numpy", "PIL", "torch"}
    run_python(f"import sys, service.client; sys.exit(' '.join({server} & set(sys.modules)) or 0)")


# Proxies that the environment names.


@pytest.fixture
def proxied(monkeypatch) -> Iterator[str]:
    """The environment of a company's machine: every request through a proxy, which is not there."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://someone:secret@{address}")
        monkeypatch.setenv(name.lower(), f"http://someone:secret@{address}")
    return address


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_no_proxy_is_asked_for_this_machine(url, host):
    with Client(f"http://{host}:{httpx.URL(url).port}", patience=0) as client:
        assert client.models()


def test_nor_does_one_of_another_kind_get_in_the_way(monkeypatch, url):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with Client(url, patience=0) as client:
        assert client.models()


def test_who_cannot_be_reached_through_a_proxy_is_said_so(proxied):
    with (
        Client("http://sid.example", patience=0) as client,
        pytest.raises(UnreachableError, match=f"through {proxied}.* NO_PROXY=sid.example") as said,
    ):
        client.models()
    assert "secret" not in str(said.value)


def test_a_proxy_that_httpx_cannot_use_is_one_line(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "gopher://127.0.0.1:1")
    with pytest.raises(ClientError, match=r"proxy .*gopher"):
        AsyncClient("http://sid.example")


def test_a_programs_old_name_of_an_image_lasts_a_release():
    with pytest.warns(DeprecationWarning, match="called GeneratedImage now"):
        old = attrgetter("Picture")(service.client)
    assert old is service.client.GeneratedImage
