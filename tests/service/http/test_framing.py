"""Whose byte is it? Streams of requests, true and lying, cut anywhere, against a strict reader.

The rule: every byte belongs to exactly one request, or the connection ends. `read` below knows
the grammar of RFC 9112 and nothing else; whatever reaches the application must be what it reads.
"""

import asyncio
import re
from itertools import pairwise

import uvicorn
from hypothesis import example, given, note, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from service.http.protocol import BoundedProtocol

Request = tuple[str, str, bytes]

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
START = re.compile(rb"(GET|HEAD|POST|PUT|OPTIONS) (/[!-~]*) HTTP/1\.([01])").fullmatch
FIELD = re.compile(rb"(%b):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*" % TOKEN).fullmatch
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=%b)?)*" % (TOKEN, TOKEN)).fullmatch


class FaultyError(Exception):
    """The stream is no HTTP from here on."""


class CutError(Exception):
    """The stream ends within a request."""


def read(stream: bytes) -> tuple[list[Request], str]:
    """The requests of a stream, and how it ends: clean, cut, faulty, or closed by a request."""
    requests: list[Request] = []
    try:
        while stream := stream.lstrip(b"\r\n"):  # which may stand between requests
            request, stream, last = read_one(stream)
            requests.append(request)
            if last:
                return requests, "closed"
    except FaultyError:
        return requests, "faulty"
    except CutError:
        return requests, "cut"
    return requests, "clean"


def read_one(stream: bytes) -> tuple[Request, bytes, bool]:
    lines, stream = read_lines(stream)
    start = START(lines[0])
    if not start:
        raise FaultyError
    method, path, minor = start[1].decode(), start[2].decode(), start[3]
    fields = [FIELD(line) for line in lines[1:]]
    if not all(fields):
        raise FaultyError
    values: dict[bytes, list[bytes]] = {}
    for field in fields:
        values.setdefault(field[1].lower(), []).append(field[2])
    options = [o.strip() for o in b",".join(values.get(b"connection", [])).lower().split(b",")]
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if len(values.get(b"host", [])) > 1 or len(lengths) + len(codings) > 1:
        raise FaultyError
    body = b""
    if codings:
        if codings[0].lower() != b"chunked" or minor == b"0":
            raise FaultyError
        body, stream = read_chunks(stream)
    elif lengths:
        if not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
            raise FaultyError
        body, stream = take(stream, int(lengths[0]))
    return (method, path, body), stream, b"close" in options or minor == b"0"


def read_lines(stream: bytes) -> tuple[list[bytes], bytes]:
    lines = []
    while True:
        line, stream = read_line(stream)
        if not line:
            return lines, stream
        lines.append(line)


def read_line(stream: bytes) -> tuple[bytes, bytes]:
    line, end, rest = stream.partition(b"\r\n")
    if b"\n" in line or b"\r" in line[:-1] or (end and b"\r" in line):
        raise FaultyError
    if not end:
        raise CutError
    return line, rest


def read_chunks(stream: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, stream = read_line(stream)
        if not (size := CHUNK(line)):
            raise FaultyError
        data, stream = take(stream, int(size[1], 16))
        if not data:
            break
        body += data
        end, stream = take(stream, 2)
        if end != b"\r\n":
            raise FaultyError
    while True:
        line, stream = read_line(stream)
        if not line:
            return body, stream
        trailer = FIELD(line)
        if not trailer or trailer[1].lower() in (b"content-length", b"transfer-encoding"):
            raise FaultyError


def take(stream: bytes, size: int) -> tuple[bytes, bytes]:
    if len(stream) < size:
        raise CutError
    return stream[:size], stream[size:]


class Wire(asyncio.Transport):
    """What the protocol writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.ended, self.paused = b"", False, False

    def write(self, data) -> None:
        assert not self.ended
        self.written += data

    def close(self) -> None:
        self.ended = True

    write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def serve(pieces: list[bytes], waits: list[bool]) -> tuple[list[Request], Wire]:
    """What reaches the application, which answers /early unread and all else when it is read."""
    seen: list[Request] = []

    async def app(scope, receive, send) -> None:
        method, path = scope["method"], scope["path"]
        body, more = b"", path != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        seen.append((method, path, body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    protocol, wire = BoundedProtocol(config, ServerState(), {}), Wire()
    protocol.connection_made(wire)
    for piece, wait in zip(pieces, waits, strict=True):
        for _ in range(20 if wait or wire.paused else 0):
            await asyncio.sleep(0)
        if not wire.ended:
            protocol.data_received(piece)
    for _ in range(60):
        await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError())
    if protocol.timeout_keep_alive_task:
        protocol.timeout_keep_alive_task.cancel()
    return seen, wire


BODIES = [
    b"",
    b"abc",
    b'{"seed":7}',
    b"0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /smuggled HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
]
OFFERS = [
    b"",
    b"",
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"connection: upgrade\r\nupgrade: TLS/1.0\r\n",
    b"upgrade: h2c\r\n",
    b"connection: close, upgrade\r\nupgrade: h2c\r\n",
]
DOUBTFUL = [
    b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: xchunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n",
    b"transfer-encoding: chunked, chunked\r\n",
    b"transfer-encoding: identity\r\n",
    b"transfer-encoding:\r\n chunked\r\n",
    b"transfer-encoding: \x0bchunked\r\n",
    b"transfer-encoding : chunked\r\n",
    b"transfer-encoding: chunked\n",
    b"transfer_encoding: chunked\r\n",
    b"x: y\r\n transfer-encoding: chunked\r\n",
    b"x: y\rtransfer-encoding: chunked\r\n",
    b"x: y\ntransfer-encoding: chunked\r\n",
    b"content-length: 3\r\n",
    b"content-length: 4\r\n",
    b"content-length: +3\r\n",
    b"content-length: 3, 3\r\n",
    b"content-length: 0x3\r\n",
    b"content-length: 003\r\n",
    b"content-length: -1\r\n",
    b"content-length: 99999999999999999999\r\n",
    b"content-length:\r\n",
    b"content-length:\r\n 3\r\n",
    b"\r\n",
    b"host: y\r\n",
    b"connection: close\r\n",
    b"connection: content-length, transfer-encoding\r\n",
    b"expect: 100-continue\r\n",
    b"trailer: content-length\r\n",
]
SPOILED = [
    b"\n",
    b"3\nabc\r\n",
    b"3 \r\nabc\r\n",
    b"0x3\r\nabc\r\n",
    b"3\r\nabcd\r\n",
    b"2\r\nabc\r\n",
    b"3;a=b\r\nabc\r\n",
    b"3;a\nabc\r\n",
    b"FFFFFFFFFFFFFFFFF\r\nabc\r\n",
    b"0\r\n",
    b"0\r\ncontent-length: 3\r\n\r\n",
    b"0\r\nx: y\r\n\r\n",
]


@st.composite
def messages(draw) -> bytes:
    """A request, which frames its body well, wrongly or in two ways."""
    body = draw(st.sampled_from(BODIES))
    fields = [b"host: x\r\n", draw(st.sampled_from(OFFERS))]
    framing = draw(st.sampled_from(["length", "length", "chunks", "chunks", "none", "lie"]))
    if framing == "length":
        fields.append(b"content-length: %d\r\n" % len(body))
    elif framing == "lie":
        fields.append(b"Content-Length: %d\r\n" % max(0, len(body) + draw(st.integers(-9, 9))))
    elif framing == "chunks":
        fields.append(b"transfer-encoding: chunked\r\n")
        at = draw(st.integers(0, len(body)))
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:]) if part]
        chunks.append(b"0\r\n\r\n")
        if draw(st.integers(0, 4)) == 0:
            chunks.insert(draw(st.integers(0, len(chunks))), draw(st.sampled_from(SPOILED)))
        body = b"".join(chunks)
    if draw(st.integers(0, 3)) == 0:
        fields.insert(draw(st.integers(0, len(fields))), draw(st.sampled_from(DOUBTFUL)))
    method = draw(st.sampled_from([b"GET", b"POST", b"POST", b"HEAD", b"PUT", b"OPTIONS"]))
    path = draw(st.sampled_from([b"/a", b"/b", b"/b", b"/early"]))
    version = draw(st.sampled_from([b"1.1"] * 9 + [b"1.0"]))
    return b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, path, version, b"".join(fields), body)


@st.composite
def connections(draw) -> tuple[list[bytes], list[bool]]:
    """The pieces in which some requests arrive, and before which the server gets to work."""
    stream = b"".join(draw(st.lists(messages(), min_size=1, max_size=4)))
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=6))
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    return pieces, draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))


UPGRADE = b"POST /a HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 37\r\n\r\n"


@given(connections())
@example(([UPGRADE, BODIES[5]], [True, True]))
@example(([UPGRADE + BODIES[5]], [True]))
@settings(max_examples=400, deadline=None)
def test_every_byte_belongs_to_one_request_or_the_connection_ends(connection):
    pieces, waits = connection
    note(f"{pieces} {waits}")
    seen, wire = asyncio.run(serve(pieces, waits))
    wanted, ending = read(b"".join(pieces))
    for (method, path, body), (*asked, full) in zip(seen, wanted, strict=False):
        assert [method, path] == asked
        assert body == (b"" if path == "/early" else full)
    assert len(seen) <= len(wanted) + any(path == "/early" for _, path, _ in seen[-1:])
    if ending in ("clean", "cut") and not wire.ended:
        assert len(seen) >= len(wanted), "nothing is lost"
    if ending in ("faulty", "closed"):
        assert wire.ended
    if ending == "clean" and not any(b"expect" in piece for piece in pieces):
        assert not wire.ended, "what is right is not refused"
