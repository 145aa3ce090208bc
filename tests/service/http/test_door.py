"""What is refused in the protocol, and what goes the usual way, on real sockets."""

import time
from itertools import pairwise
from random import Random

import pytest

from service.http.door import with_door
from service.http.protocol import bounded
from tests.service.http.test_protocol import KEEP_ALIVE, Peer, serving, with_a_clock
from tests.service.waiting import until

REFUSED = (429, b"full")


class Door:
    """Refuses all but what has `usual` in its body or query, and nothing while it is open."""

    def __init__(self) -> None:
        self.open = False
        self.seen: list[tuple[bytes, bytes, bytes]] = []
        self.headers: list[dict[bytes, bytes]] = []

    def may_refuse(self) -> bool:
        return not self.open

    def refusal(self, method, query, headers, body) -> bytes | None:
        assert dict(headers)[b"host"] == b"test"
        self.headers.append(dict(headers))
        self.seen.append((method, query, body))
        usual = b"usual" in body or b"usual" in query
        return None if usual else b"content-length: 4\r\n\r\nfull"


class Echo:
    """Answers a request with its body, or with `nobody` when its client left."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        self.headers.append(dict(scope["headers"]))
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                body, more = b"nobody", False
            else:
                body += message["body"]
                more = message["more_body"]
        self.bodies.append(body)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def door():
    return Door()


@pytest.fixture
def app():
    return Echo()


@pytest.fixture(params=["asyncio", "uvloop"])
def running(request):
    return request.param


@pytest.fixture
def peer(app, door, running):
    with serving(app, with_door(bounded(10), door), running) as address:
        peer = Peer(address)
        yield peer
        peer.file.close()
        peer.socket.close()


def post(body: bytes, *headers: bytes, target: bytes = b"/generate") -> bytes:
    fields = b"".join(b"%b\r\n" % header for header in (b"Host: test", *headers))
    return b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (
        target, fields, len(body), body,
    )  # fmt: skip


def answer(peer: Peer) -> tuple[int, bytes]:
    status, _, body = peer.answer()
    return status, body


def test_a_connection_outlives_refusals_and_is_served_when_there_is_room(peer, door, app):
    for number in range(3):
        peer.send(post(b"%d" % number))
        assert answer(peer) == REFUSED
    peer.send(b"GET /generate?seed=7 HTTP/1.1\r\nhost: test\r\n\r\n")
    assert answer(peer) == REFUSED
    assert app.bodies == []
    door.open = True
    peer.send(post(b"served"))
    assert answer(peer) == (200, b"served")
    bodies = [(b"POST", b"", b"0"), (b"POST", b"", b"1"), (b"POST", b"", b"2")]
    assert door.seen == [*bodies, (b"GET", b"seed=7", b"")]


def test_an_answer_says_when_and_by_whom_it_was_made(peer):
    peer.send(post(b""))
    _, headers, _ = peer.answer()
    assert set(headers) == {"date", "server", "content-length"}


@pytest.mark.parametrize("target", [b"/generate?usual=1", b"/generates", b"/other"])
def test_what_the_door_leaves_reaches_the_application_whole(peer, target):
    peer.send(post(b"body", target=target))
    assert answer(peer) == (200, b"body")


def test_a_body_that_comes_in_pieces_goes_the_usual_way(peer, door):
    whole = post(b"in pieces")
    peer.send(whole[:-9], whole[-9:-4], whole[-4:])
    assert answer(peer) == (200, b"in pieces")
    peer.send(whole[:20], whole[20:])  # its body comes with the end of its head
    assert answer(peer) == REFUSED
    chunked = b"POST /generate HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
    peer.send(chunked + b"2\r\nin\r\n4\r\n one\r\n0\r\n\r\n")
    assert answer(peer) == REFUSED
    assert door.seen[-1] == (b"POST", b"", b"in one")


@pytest.mark.parametrize("pieces", [1, 2])
def test_trailers_become_no_headers(peer, door, app, pieces):
    """A key that comes behind the body is none, whether or not the door looked at the request."""
    request = in_chunks(b"usual").removesuffix(b"\r\n") + b"X-API-Key: late\r\n\r\n"
    if pieces == 1:
        peer.send(request)
    else:
        peer.send(request[:-5], request[-5:])
    assert answer(peer) == (200, b"usual")
    for headers in (*door.headers, *app.headers):
        assert set(headers) == {b"host", b"transfer-encoding"}


def test_pipelined_requests_are_answered_in_their_order(peer, app):
    peer.send(post(b"1") + post(b"2") + post(b"usual") + post(b"3"))
    assert [answer(peer) for _ in range(3)] == [REFUSED, REFUSED, (200, b"usual")]
    assert answer(peer) == (200, b"3"), "behind one that was being answered"
    assert app.bodies == [b"usual", b"3"]
    peer.send(post(b"4"))
    assert answer(peer) == REFUSED


def test_the_last_request_of_a_connection_goes_the_usual_way(peer):
    peer.send(post(b"body", b"Connection: close"))
    assert answer(peer) == (200, b"body")
    assert peer.ended()


def test_who_asks_leave_for_a_body_goes_the_usual_way(peer):
    peer.send(post(b"body", b"Expect: 100-continue"))
    assert peer.file.readline() + peer.file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer(peer) == (200, b"body")


def test_http_1_0_goes_the_usual_way(peer):
    peer.send(b"POST /generate HTTP/1.0\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody")
    assert answer(peer) == (200, b"body")
    assert peer.ended()


def test_a_body_larger_than_a_head_may_be_is_no_head(peer):
    peer.send(post(b"x" * 20_000) * 3)
    until(peer.is_received)
    first = answer(peer)
    assert first in (REFUSED, (200, b"x" * 20_000)), "as the pieces come"
    for _ in range(2):
        assert answer(peer)[0] in (200, 429)


def test_what_is_no_body_is_told_so_and_the_application_is_told_that_nobody_waits(peer, app):
    peer.send(b"POST /generate HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\nno\r\n")
    assert peer.problem() == (400, "malformed")
    until(lambda: app.bodies == [b"nobody"])


@with_a_clock
def test_a_connection_that_was_refused_may_idle_as_long_as_any(peer):
    peer.send(post(b""))
    assert answer(peer) == REFUSED
    peer.passes(KEEP_ALIVE - 1)
    assert not peer.is_ended()
    peer.passes(2)
    assert peer.ended()


@pytest.mark.parametrize("seed", range(12))
def test_however_requests_are_cut_each_has_one_answer_in_its_turn(peer, app, seed):
    random = Random(seed)
    for _ in range(10):
        bodies = [
            b"%d %b" % (number, random.choice((b"", b"usual", b"x" * 300))) for number in range(6)
        ]
        requests = [random.choice((post, in_chunks))(body) for body in bodies]
        if random.random() < 0.3:
            requests[-1] = requests[-1].replace(b"Host", b"Connection: close\r\nHost")
        sent = b"".join(requests)
        cuts = sorted(random.sample(range(1, len(sent)), random.randrange(8)))
        pieces = [sent[a:b] for a, b in pairwise([0, *cuts, len(sent)])]
        for piece in pieces:
            peer.socket.sendall(piece)
            if random.random() < 0.5:
                time.sleep(0.001)
        for body in bodies:
            status, answered = answer(peer)
            assert (status, answered) in (REFUSED, (200, body))
            assert status == 200 or b"usual" not in body
        if b"close" in requests[-1]:
            assert peer.ended()
            break
    assert b"nobody" not in app.bodies


def in_chunks(body: bytes) -> bytes:
    half = len(body) // 2
    parts = (part for part in (body[:half], body[half:]) if part)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    head = b"POST /generate HTTP/1.1\r\nHost: test\r\ntransfer-encoding: chunked\r\n\r\n"
    return b"%b%b0\r\n\r\n" % (head, chunks)
