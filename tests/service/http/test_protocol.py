"""HTTP on real sockets against a real uvicorn: what a client may send, and when it is cut off."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from service.http.middleware import BodyLimit
from service.http.protocol import BoundedProtocol, bounded
from tests.service.waiting import DEFECT_SECONDS, turns, until

GET = b"GET /%b HTTP/1.1\r\nhost: test\r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n"
CHUNKED = b"POST /%b HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"


# By default a head and a body have 10 s each; between requests, a connection may idle for 30 s.
KEEP_ALIVE = 30

# Where time has to pass: uvloop's clock cannot be set forward, and its timers are few to try.
with_a_clock = pytest.mark.parametrize("running", ["asyncio"], indirect=True)


class App:
    """Echoes bodies on /echo, answers /early unread, and waits to be let go on /wait and /lazy."""

    def __init__(self) -> None:
        self.left = self.waiting = 0
        self.statuses: list[int] = []
        self.go = threading.Event()

    async def __call__(self, scope, receive, send) -> None:
        status, body = 200, scope["path"].encode()
        if scope["path"] == "/lazy":
            await self.let_go()
        if scope["path"] in ("/echo", "/lazy"):
            status, body = await self.read(receive)
        elif scope["path"] == "/early":
            status = 404
        elif scope["path"] == "/wait":
            assert (await receive())["type"] == "http.request"
            self.waiting += 1
            listener = asyncio.create_task(receive())
            await self.let_go(listener)
            if listener.done():
                assert listener.result() == {"type": "http.disconnect"}
                self.left += 1
            listener.cancel()
        self.statuses.append(status)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        if scope["path"] == "/begun":
            await send({"type": "http.response.body", "body": body[:1], "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            body = body[1:]
        await send({"type": "http.response.body", "body": body})

    async def let_go(self, listener: asyncio.Task | None = None) -> None:
        while not (self.go.is_set() or (listener and listener.done())):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def read(self, receive) -> tuple[int, bytes]:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                return 200, body
        return 499, b""


# What each server's connections have received, by the address of the client.
_connections: dict[tuple[str, int], BoundedProtocol] = {}
_servers: set[tuple[str, int]] = set()  # which are watched: those of this process


def watched(protocol: type[BoundedProtocol]) -> type[BoundedProtocol]:
    """The same protocol, of which tests see how many bytes it has received."""

    class Watched(protocol):
        received = 0

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            _connections[self.client] = self

        def data_received(self, data) -> None:
            super().data_received(data)
            self.received += len(data)

    return Watched


class Peer:
    """One connection, as raw as it gets."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(DEFECT_SECONDS)
        self.socket.bind(("127.0.0.1", 0))
        self.name = self.socket.getsockname()
        _connections.pop(self.name, None)  # of an earlier connection from the same port
        self.socket.connect(address)
        self.is_watched = address in _servers
        self.file = self.socket.makefile("rb")
        self.sent = 0

    def send(self, *parts: bytes) -> None:
        """Send each part when the server has received what was sent before it."""
        for part in parts:
            self.socket.sendall(part)
            self.sent += len(part)
            until(self.is_received)

    def is_received(self) -> bool:
        """Whether the server has received all that was sent, or takes no more of it."""
        if not self.is_watched:  # a server in a process of its own
            return True
        if (connection := _connections.get(self.name)) is None:
            return False
        return (
            connection.received >= self.sent
            or connection.transport.is_closing()
            or connection.flow.read_paused
        )

    def passes(self, seconds: int) -> None:
        """Let that much time pass for the server, a second at a time: its clock is set forward."""
        until(lambda: self.name in _connections)
        loop = _connections[self.name].loop

        async def pass_one() -> None:
            loop.ahead += 1
            await turns(3)  # what is due has its turn

        for _ in range(seconds):
            asyncio.run_coroutine_threadsafe(pass_one(), loop).result(DEFECT_SECONDS)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers, self.file.read(int(headers["content-length"]))

    def problem(self) -> tuple[int, str]:
        """The answer as a problem: status and kind."""
        status, headers, body = self.answer()
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert headers["x-request-id"]
        problem = json.loads(body)
        assert problem["status"] == status
        return status, problem["type"].rpartition(":")[2]

    def ended(self) -> bool:
        """Whether the server ends its side of the connection, with nothing more to say."""
        return self.file.read() == b""

    def is_ended(self) -> bool:
        """Whether the server has ended its side by now; there is nothing else to read."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(DEFECT_SECONDS)

    def gone(self) -> bool:
        """Whether the server closes the connection altogether, in spite of a client that talks."""
        deadline = time.monotonic() + DEFECT_SECONDS
        while time.monotonic() < deadline:
            try:
                self.socket.sendall(b"z")
            except ConnectionError:
                return True
        return False


class SettableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be set forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@contextmanager
def serving(app, protocol, loop: str = "asyncio") -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,
            http=watched(protocol),
            ws=asyncio.Protocol,
            loop=f"{__name__}:SettableLoop" if loop == "asyncio" else loop,
            lifespan="off",
            log_config=None,
            log_level="error",
            timeout_keep_alive=KEEP_ALIVE,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            _servers.add(listener.getsockname())
            yield listener.getsockname()
        finally:
            _servers.discard(listener.getsockname())
            server.should_exit = server.force_exit = True
            thread.join(10)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def running(request) -> Iterator[tuple[App, tuple[str, int]]]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    app = App()
    with serving(app, BoundedProtocol, request.param) as address:
        yield app, address


@pytest.fixture
def app(running) -> App:
    app, _ = running
    app.left = app.waiting = 0
    app.statuses.clear()
    app.go.clear()
    return app


@pytest.fixture
def peer(app, running, caplog) -> Iterator[Peer]:
    assert app
    peer = Peer(running[1])
    yield peer
    peer.file.close()
    peer.socket.close()
    logged = caplog.get_records("call")
    assert not [record for record in logged if record.levelno >= logging.ERROR]


def head(size: int) -> bytes:
    """The head of a valid request, of about so many bytes."""
    return b"GET /a HTTP/1.1\r\nhost: test\r\nx: %b\r\n\r\n" % (b"y" * size)


# What is within the bounds is served as ever.


def test_requests_follow_each_other_on_one_connection(peer):
    for _ in range(3):
        peer.send(GET % b"a")
        assert peer.answer()[::2] == (200, b"/a")


def test_pipelined_requests_are_answered_in_order(peer):
    peer.send(GET % b"a" + POST % (b"echo", 3) + b"abc" + GET % b"b")
    assert [peer.answer()[2] for _ in range(3)] == [b"/a", b"abc", b"/b"]


@with_a_clock
def test_no_deadline_outlives_its_body(peer):
    peer.send(POST % (b"echo", 600_000) + b"z" * 600_000)
    assert len(peer.answer()[2]) == 600_000
    peer.passes(20)
    peer.send(GET % b"a")
    assert peer.answer()[0] == 200, "the body's deadline went with it"


def test_a_body_may_come_with_its_head_or_in_pieces_and_be_larger_than_a_head(peer):
    body = b"z" * 60_000
    peer.send(POST % (b"echo", len(body)) + body)
    assert peer.answer()[2] == body
    peer.send(POST % (b"echo", len(body)), *[body[:20_000]] * 3)
    assert peer.answer()[2] == body
    peer.send(CHUNKED % b"echo", b"4\r\nabcd\r\n", b"0\r\n\r\n")
    assert peer.answer()[2] == b"abcd"


def test_a_head_may_come_in_pieces_and_be_almost_as_large_as_the_bound(peer):
    peer.send(*(head(16_000)[start : start + 4000] for start in range(0, 18_000, 4000)))
    assert peer.answer()[0] == 200
    peer.send(head(16_000))
    assert peer.answer()[0] == 200


@with_a_clock
@pytest.mark.parametrize(
    ("path", "size"), [(b"wait", 0), (b"lazy", 300_000)], ids=["waiting", "not reading"]
)
def test_a_request_may_take_longer_than_its_head_and_body_may(peer, app, path, size):
    peer.send(GET % b"a")
    peer.answer()
    peer.send(POST % (path, size) + b"z" * size)
    peer.passes(35)
    app.go.set()
    assert peer.answer()[0] == 200
    assert app.left == 0


@with_a_clock
@pytest.mark.parametrize("at_once", [True, False])
def test_requests_that_wait_behind_another_lose_no_time(peer, app, at_once):
    parts = [GET % b"wait", POST % (b"echo", 3)]
    peer.send(*([b"".join(parts)] if at_once else parts))
    peer.passes(25)  # near the end of a third period
    app.go.set()
    assert peer.answer()[::2] == (200, b"/wait")
    peer.passes(6)
    peer.send(b"abc")
    assert peer.answer()[::2] == (200, b"abc")


@with_a_clock
def test_nor_does_a_part_of_a_head(peer, app):
    start, end = GET[:9] % b"a", GET[9:]
    peer.send(GET % b"wait", start)
    peer.passes(25)
    app.go.set()
    assert peer.answer()[::2] == (200, b"/wait")
    peer.passes(6)
    peer.send(end)
    assert peer.answer()[::2] == (200, b"/a")


# Heads.


@pytest.mark.parametrize("size", [16_400, 60_000, 200_000])
def test_a_head_that_is_too_large_is_refused_and_the_client_can_read_why(peer, size):
    peer.send(head(size))
    assert peer.problem() == (431, "head-too-large")
    assert peer.ended()


@pytest.mark.parametrize(
    "part",
    [b"y" * 1000, b"a: b\r\n" * 200, b"\r\nxxxxx:" + b" " * 1000],
    ids=["value", "many", "blank"],
)
def test_a_head_without_end_is_refused(peer, part):
    peer.send(b"GET /a HTTP/1.1\r\nx: ", *[part] * 20)
    assert peer.problem() == (431, "head-too-large")
    assert peer.ended()


def test_the_head_of_a_pipelined_request_is_bounded_too(peer, app):
    peer.send(GET % b"wait", b"GET /a HTTP/1.1\r\n", *[b"x: " + b"y" * 2000 + b"\r\n"] * 20)
    app.go.set()
    assert peer.answer()[::2] == (200, b"/wait"), "the earlier request keeps its answer"
    assert peer.ended()


def test_trailers_are_bounded_too(peer):
    peer.send(CHUNKED % b"echo", b"1\r\na\r\n0\r\n")
    peer.send(*[b"x: " + b"y" * 9000 + b"\r\n"] * 32)
    assert peer.problem() == (431, "head-too-large")
    assert peer.ended()


@with_a_clock
def test_a_head_that_does_not_end_in_time_is_refused(peer):
    peer.send(b"GET /a HTTP/1.1\r\n")
    for _ in range(3):
        peer.passes(2)
        peer.send(b"x: y\r\n")
    assert not peer.is_ended()
    peer.passes(5)
    assert peer.problem() == (408, "request-timeout")
    assert peer.ended()


@with_a_clock
def test_a_connection_that_says_nothing_is_closed_without_a_word(peer):
    peer.passes(11)
    assert peer.ended()


@with_a_clock
def test_line_breaks_between_requests_keep_no_connection_open(peer):
    peer.send(GET % b"a")
    peer.answer()
    for _ in range(KEEP_ALIVE):
        assert not peer.is_ended()
        peer.send(b"\r\n")
        peer.passes(1)
    peer.passes(1)
    assert peer.is_ended()


@with_a_clock
def test_nor_do_they_shorten_its_time_or_bring_an_answer_that_nobody_asked_for(peer):
    """Some clients end a body with one more (RFC 9112, 2.2); the next may come when it likes."""
    peer.send(POST % (b"echo", 1) + b"a")
    assert peer.answer()[2] == b"a"
    peer.send(b"\r\n")
    peer.passes(20)  # twice as long as a head may take
    peer.send(GET % b"a")
    assert peer.answer()[::2] == (200, b"/a")


# Bodies.


@with_a_clock
@pytest.mark.parametrize("parts", [1, 12], ids=["stalled", "dripping"])
def test_a_body_that_does_not_arrive_in_time_is_refused(peer, app, parts):
    peer.send(POST % (b"echo", 100))
    for _ in range(parts):
        peer.send(b"a")
        peer.passes(11 // parts + 1)
    assert peer.problem() == (408, "request-timeout")
    assert peer.ended()
    peer.passes(11)
    assert peer.gone()
    until(lambda: app.statuses == [499])


def test_a_request_that_was_refused_on_the_wire_is_recorded_with_that_status():
    statuses = []

    async def record(scope, receive, send):
        async def watch(message):
            statuses.append(message.get("status"))
            await send(message)

        scope["state"]["request_id"] = "from-the-application"
        await BodyLimit(App(), 100)(scope, receive, watch)

    with serving(record, BoundedProtocol) as address:
        peer = Peer(address)
        peer.send(POST % (b"echo", 10))
        peer.passes(11)
        status, headers, _ = peer.answer()
    assert status == 408
    assert headers["x-request-id"] == "from-the-application"
    assert statuses[0] == 408


def test_the_setting_bounds_the_time_of_a_body():
    with serving(App(), bounded(0.2)) as address:
        peer = Peer(address)
        peer.send(POST % (b"echo", 10))
        assert peer.problem() == (408, "request-timeout")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (POST[:-2] % (b"echo", 10) + b"Origin: %b\r\n\r\n", 408),
        (GET[:-2] % b"a" + b"Origin: %b\r\nx: " + b"y" * 20_000, 431),
        (GET[:-2] % b"a" + b"Origin: %b\r\nhost: other\r\n\r\n", 400),
    ],
)
@pytest.mark.parametrize(
    ("allowed", "origin", "granted"),
    [
        ({"https://a.example"}, b"https://a.example", "https://a.example"),
        ({"https://a.example"}, b"https://b.example", None),
        ({"*"}, b"https://b.example", "*"),
        (set(), b"https://a.example", None),
    ],
)
def test_pages_that_may_call_may_read_these_answers_too(sent, status, allowed, origin, granted):
    with serving(App(), bounded(0.2, allowed_origins=frozenset(allowed))) as address:
        peer = Peer(address)
        peer.send(sent % origin)
        answered, headers, _ = peer.answer()
    assert answered == status
    assert headers.get("access-control-allow-origin") == granted
    assert ("X-Request-ID" in headers.get("access-control-expose-headers", "")) == bool(granted)
    assert headers.get("vary") == ("Origin" if allowed == {"https://a.example"} else None)


def test_after_an_early_answer_a_small_rest_is_skipped_and_the_connection_goes_on(peer):
    peer.send(POST % (b"early", 50_000))
    assert peer.answer()[0] == 404
    peer.send(b"z" * 25_000, b"z" * 25_000, GET % b"a")
    assert peer.answer()[::2] == (200, b"/a")


@with_a_clock
def test_after_an_early_answer_and_its_rest_the_connection_idles_as_after_any(peer):
    peer.send(POST % (b"early", 50_000))
    assert peer.answer()[0] == 404
    peer.send(b"z" * 50_000)
    peer.passes(20)  # twice as long as a head may take
    peer.send(GET % b"a")
    assert peer.answer()[::2] == (200, b"/a")
    peer.passes(25)
    assert not peer.is_ended()
    peer.passes(6)
    assert peer.ended()


def test_after_an_early_answer_and_its_rest_a_head_is_bounded_as_ever(peer):
    peer.send(POST % (b"early", 50_000))
    assert peer.answer()[0] == 404
    peer.send(b"z" * 50_000, head(16_400)[:-4])
    assert peer.problem() == (431, "head-too-large")


def test_after_an_early_answer_a_large_rest_is_not_waited_for():
    with serving(App(), BoundedProtocol) as address:
        peer = Peer(address)
        peer.send(POST % (b"early", 10**12))
        assert peer.answer()[0] == 404
        with pytest.raises(ConnectionError):
            peer.send(*[b"z" * 10_000] * 5000)


@with_a_clock
def test_after_an_early_answer_a_rest_that_does_not_come_ends_the_connection(peer):
    peer.send(POST % (b"early", 50_000) + b"z")
    assert peer.answer()[0] == 404
    peer.passes(11)
    assert peer.ended()


# Clients that leave, or shut down their sending side.


@pytest.mark.parametrize(
    "requests", [[b"wait"], [b"wait", b"a"], [b"a", b"wait", b"b"]], ids=["one", "two", "three"]
)
def test_the_application_is_told_that_the_client_left(peer, app, requests):
    peer.send(b"".join(GET % path for path in requests))
    until(lambda: app.waiting)
    peer.file.close()
    peer.socket.close()
    until(lambda: app.left == 1)


def test_a_half_closed_connection_counts_as_left_and_is_told_so(peer, app):
    peer.send(GET % b"wait")
    peer.socket.shutdown(socket.SHUT_WR)
    assert peer.problem() == (400, "half-closed")
    assert peer.ended()
    until(lambda: app.left == 1)


def test_a_half_closed_connection_gets_what_needs_no_waiting(peer):
    peer.send(GET % b"a")
    peer.socket.shutdown(socket.SHUT_WR)
    assert peer.answer()[::2] == (200, b"/a")
    assert peer.ended()


# What is not HTTP.


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",  # TLS
        b"GET /a HTTP/1.1\r\nhost test\r\n\r\n",
        POST[:-2] % (b"echo", 1) + b"content-length: 2\r\n\r\nab",
        CHUNKED % b"echo" + b"oops\r\n",
    ],
)
def test_what_is_not_http_is_answered_like_any_other_mistake(peer, sent):
    peer.send(sent)
    assert peer.problem() == (400, "malformed")
    assert peer.ended()


@with_a_clock
def test_a_refused_client_that_goes_on_talking_is_cut_off(peer):
    peer.send(b"hello\r\n\r\n")
    assert peer.problem() == (400, "malformed")
    peer.passes(11)
    assert peer.gone()


def test_nonsense_after_a_request_does_not_take_its_answer(peer, app):
    peer.send(GET % b"wait" + b"nonsense\r\n\r\n")
    app.go.set()
    assert peer.answer()[::2] == (200, b"/wait")
    assert peer.ended()


def test_nonsense_in_a_body_is_not_answered_into_an_answer_that_has_begun(peer):
    peer.send(CHUNKED % b"begun")
    while peer.file.readline().strip():  # the head
        pass
    assert peer.file.read(1) == b"/"
    peer.send(b"oops\r\n")
    assert peer.ended()


# Offers to go over to another protocol, which are not followed: nothing of the request is lost.

OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"Connection: upgrade\r\nUpgrade: WebSocket\r\nsec-websocket-version: 13\r\n",
    "TLS": b"upgrade: TLS/1.0\r\nconnection: upgrade\r\n",
}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_an_offered_upgrade_takes_nothing_of_the_request(peer, app, offer, method, chunked):
    body = GET % b"b"  # reads like a request
    framing, sent = b"content-length: %d\r\n" % len(body), body
    if chunked:
        framing, sent = (
            b"transfer-encoding: chunked\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        )
    head = b"%b /echo HTTP/1.1\r\nhost: test\r\n%b%b\r\n" % (method, OFFERS[offer], framing)
    message = head + sent
    for pieces in (
        [message + GET % b"a"],
        [head, sent, GET % b"a"],
        [head[:-9], message[len(head) - 9 : -9], message[-9:] + GET % b"a"],
    ):
        peer.send(*pieces)
        assert peer.answer()[::2] == (200, body)
        assert peer.answer()[::2] == (200, b"/a")
    assert app.statuses == [200] * 6


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_many_pipelined_offers_are_answered_each(peer, offer):
    requests = [GET[:-2] % b"%d" % number + offer + b"\r\n" for number in range(300)]
    peer.send(b"".join(requests) + GET % b"last")
    assert [peer.answer()[2] for _ in requests] == [b"/%d" % n for n in range(300)]
    assert peer.answer()[2] == b"/last"


def test_an_offer_keeps_its_request_within_the_bounds(peer):
    peer.send(head(16_400)[:-2] + OFFERS["h2c"] + b"\r\n")
    assert peer.problem() == (431, "head-too-large")
    assert peer.ended()


def test_an_offer_with_a_last_request_ends_the_connection_after_its_answer(peer):
    offer = b"connection: close, upgrade\r\nupgrade: h2c\r\n"
    peer.send(POST[:-2] % (b"echo", 3) + offer + b"\r\nabc" + GET % b"a")
    assert peer.answer()[::2] == (200, b"abc")
    assert peer.ended()


# Whose byte is it? test_framing.py asks that of whole connections; here is how each is refused.


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        (b"transfer-encoding: gzip, chunked\r\n", (501, "not-implemented")),
        (
            b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
            (501, "not-implemented"),
        ),
        (b"transfer-encoding: ,chunked\r\n", (501, "not-implemented")),
        (b"transfer-encoding: xchunked\r\n", (400, "malformed")),
        (b"transfer-encoding: chunked, gzip\r\n", (400, "malformed")),
        (b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", (400, "malformed")),
        (b"host: other\r\n", (400, "malformed")),
    ],
)
@pytest.mark.parametrize("offer", [b"", OFFERS["h2c"]], ids=["plain", "upgrade"])
def test_what_frames_its_body_in_doubtful_ways_is_refused(peer, app, fields, refusal, offer):
    head = b"POST /echo HTTP/1.1\r\nhost: test\r\n"
    peer.send(head + fields + offer + b"\r\n0\r\n\r\n" + GET % b"a")
    assert peer.problem() == refusal
    assert peer.ended()
    assert app.statuses == []


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        (b"GET /a HTTP/2.0\r\nhost: test\r\n\r\n", (505, "http-version")),
        (b"GET /a\r\n\r\n", (505, "http-version")),
        (b"CONNECT test:443 HTTP/1.1\r\nhost: test\r\n\r\n", (501, "not-implemented")),
        (CHUNKED.replace(b"1.1", b"1.0") % b"echo" + b"0\r\n\r\n", (400, "malformed")),
    ],
)
def test_what_is_not_spoken_here_is_refused(peer, app, sent, refusal):
    peer.send(sent + GET % b"a")
    assert peer.problem() == refusal
    assert peer.ended()
    assert app.statuses == []


def test_trailers_do_not_become_headers_of_the_request():
    seen = []

    async def note(scope, receive, send):
        await App()(scope, receive, send)
        seen.extend(scope["headers"])

    with serving(note, BoundedProtocol) as address:
        peer = Peer(address)
        peer.send(CHUNKED % b"echo" + b"1\r\na\r\n0\r\nx-api-key: stolen\r\n\r\n" + GET % b"a")
        assert [peer.answer()[2] for _ in range(2)] == [b"a", b"/a"]
    assert b"x-api-key" not in dict(seen)


def test_a_spoiled_rest_of_an_answered_request_brings_no_second_answer(peer):
    peer.send(CHUNKED % b"early")
    assert peer.answer()[0] == 404
    peer.send(b"oops\r\n")
    assert peer.ended()


EXPECT = b"POST /%b HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"


def test_a_client_that_asks_leave_for_its_body_gets_it_and_may_go_on(peer):
    peer.send(EXPECT % (b"echo", 3))
    assert peer.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert peer.file.readline() == b"\r\n"
    peer.send(b"abc")
    assert peer.answer()[::2] == (200, b"abc")
    peer.send(EXPECT % (b"echo", 3) + b"abc" + EXPECT % (b"a", 0) + GET % b"b")
    peer.file.readline(), peer.file.readline()
    assert [peer.answer()[2] for _ in range(3)] == [b"abc", b"/a", b"/b"]


def test_one_that_was_answered_without_its_body_cannot_go_on(peer):
    """It may send the body or not, so what came next could be either (CVE-2024-24791 and kin)."""
    peer.send(EXPECT % (b"early", 100))
    status, headers, _ = peer.answer()
    assert (status, headers["connection"]) == (404, "close")
    assert peer.ended()


def test_older_clients_are_not_told_to_continue(peer):
    peer.send(EXPECT.replace(b"1.1", b"1.0") % (b"echo", 3), b"abc")
    assert peer.answer()[::2] == (200, b"abc")
