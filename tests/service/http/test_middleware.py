"""What happens around every request: its id, its metrics and log line, its key, its body."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request, Response

from service.http import problems
from service.http.middleware import ApiKeys, BodyLimit, RequestMetrics
from service.http.security import TokenBuckets, charge, load_keys, new_key
from service.observability import logs
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing

LIMIT = 1000


@pytest.fixture
def lines(capfd):
    """Our log lines that were written since the last call, as objects."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("json")

    def lines() -> list[dict[str, Any]]:
        logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        return [line for line in logged if "logger" not in line]  # httpx's are not ours

    yield lines
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def key():
    return new_key("alice")


@pytest.fixture
def app(tmp_path, key) -> FastAPI:
    """A small application behind all of the middleware, in the order of the real one."""
    app = FastAPI()
    app.state.metrics = Metrics()
    app.state.buckets = TokenBuckets(0.5, 4)
    (tmp_path / "keys").write_text(key.line)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=LIMIT)
    app.add_middleware(ApiKeys, keys=load_keys(tmp_path / "keys"))
    app.add_middleware(RequestMetrics, metrics=app.state.metrics, tracing=Tracing())

    @app.post("/things/{name}")
    async def things(request: Request, name: str) -> dict[str, Any]:
        request.state.model = "tiny"
        body = await request.body()
        return {"name": name, "body": len(body), "request_id": request.state.request_id}

    @app.get("/fails")
    async def fails(request: Request) -> None:
        raise RuntimeError(request.headers["authorization"])

    @app.get("/charged/{n}")
    async def charged(request: Request, n: int) -> None:
        charge(request, n)

    @app.get("/livez")
    @app.get("/readyz")
    @app.get("/metrics")
    async def probe() -> None:
        pass

    return app


@pytest.fixture
def call(app, key):
    """Send a request with the key, or with other headers."""

    async def send(method: str, path: str, **options: Any) -> httpx.Response:
        options.setdefault("headers", {}).setdefault("authorization", f"Bearer {key.secret}")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **options)

    def call(method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(send(method, path, **options))

    return call


def kind(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    return problem["type"].rpartition(":")[2]


# Request ids.


@pytest.mark.parametrize("sent", ["a", "A-1_b.c", "x" * 128])
def test_a_request_keeps_the_id_it_brings(call, lines, sent):
    answer = call("POST", "/things/x", headers={"X-Request-ID": sent})
    assert answer.headers.get_list("x-request-id") == [sent]
    assert answer.json()["request_id"] == sent
    (line,) = lines()
    assert line["request_id"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "a\tb", "é", 'a"b', "a,b", "\x1b[2J"])
def test_a_request_without_a_proper_id_gets_a_new_one(call, sent):
    headers = {} if sent is None else {"x-request-id": sent.encode()}
    ids = [call("POST", "/things/x", headers=dict(headers)).headers["x-request-id"] for _ in "ab"]
    assert ids[0] != ids[1]
    for made in ids:
        assert len(made) == 32
        assert made.isalnum()


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("PUT", "/things/x", {}, 405),
        ("POST", "/things/x", {"headers": {"authorization": ""}}, 401),
        ("POST", "/things/x", {"headers": {"authorization": "Bearer x"}}, 403),
        ("POST", "/things/x", {"content": b"x" * (LIMIT + 1)}, 413),
        ("GET", "/fails", {}, 500),
        ("GET", "/livez", {}, 200),
    ],
)
def test_every_answer_carries_an_id(call, lines, method, path, options, status):
    answer = call(method, path, **options)
    assert answer.status_code == status
    assert len(answer.headers.get_list("x-request-id")) == 1
    for line in lines():
        assert line["request_id"] == answer.headers["x-request-id"]


# Metrics and the log line.


def test_a_request_is_counted_by_its_route_and_logged_with_what_is_known(app, call, lines):
    for name in ("x", "y", "z"):
        call("POST", f"/things/{name}")
    call("GET", "/nothing")
    sample = app.state.metrics.registry.get_sample_value
    things = {"route": "/things/{name}", "model": "tiny", "status": "200"}
    other = {"route": "other", "model": "", "status": "404"}
    assert sample("sid_requests_total", things) == 3
    assert sample("sid_requests_total", other) == 1
    assert sample("sid_request_seconds_count", {"route": "/things/{name}"}) == 3
    first, _, _, last = lines()
    assert 0 < first.pop("ms") < 1000
    assert first.pop("timestamp") < last["timestamp"]
    assert len(first.pop("request_id")) == 32
    assert first == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "path": "/things/x",
        "status": 200,
        "client": "alice",
        "model": "tiny",
    }
    assert (last["status"], last["problem"]) == (404, "not-found")
    assert "model" not in last


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (401, {"headers": {"authorization": ""}}),
        (403, {"headers": {"authorization": "Bearer x"}}),
        (413, {"content": b"x" * (LIMIT + 1)}),
    ],
)
def test_what_is_refused_on_its_way_counts_as_its_route_s(app, call, status, options):
    assert call("POST", "/things/x", **options).status_code == status
    labels = {"route": "/things/{name}", "model": "", "status": str(status)}
    assert app.state.metrics.registry.get_sample_value("sid_requests_total", labels) == 1


def test_so_does_a_body_that_did_not_come_in_time(app):
    state = {"refused": 408}
    asyncio.run(
        drive(
            app,
            messages=[{"type": "http.disconnect"}],
            headers=[*CHUNKED],
            path="/livez",
            method="GET",
            root_path="",
            query_string=b"",
            state=state,
        )
    )
    labels = {"route": "/livez", "model": "", "status": "408"}
    assert app.state.metrics.registry.get_sample_value("sid_requests_total", labels) == 1


def test_probes_are_counted_and_not_logged(app, call, lines):
    call("GET", "/readyz")
    labels = {"route": "/readyz", "model": "", "status": "200"}
    assert app.state.metrics.registry.get_sample_value("sid_requests_total", labels) == 1
    assert lines() == []


def test_nothing_is_logged_for_a_request_at_warning(call, lines):
    logs.configure("json", "warning")
    call("POST", "/things/x")
    assert lines() == []


def test_a_path_forges_no_line(call, lines):
    answer = call("POST", "/things/x%0A%7B%22event%22:%22request%22%7D%1B[2J")
    assert answer.status_code == 200
    (line,) = lines()
    assert line["path"] == '/things/x\n{"event":"request"}\x1b[2J'


def test_a_failure_is_answered_once_counted_and_logged_with_its_traceback(app, call, lines):
    answer = call("GET", "/fails")
    assert kind(answer) == "internal-error"
    labels = {"route": "/fails", "model": "", "status": "500"}
    assert app.state.metrics.registry.get_sample_value("sid_requests_total", labels) == 1
    failure, line = lines()
    assert failure["event"] == "request failed"
    assert failure["level"] == "error"
    assert failure["exception"][0]["exc_type"] == "RuntimeError"
    assert (line["level"], line["problem"]) == ("error", "internal-error")
    assert failure["request_id"] == line["request_id"] == answer.headers["x-request-id"]
    assert line["status"] == 500


def test_a_failure_in_the_middle_of_an_answer_starts_no_second_one(lines):
    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200})
        raise RuntimeError("too late")

    sent = asyncio.run(drive(RequestMetrics(app, Metrics(), Tracing()), messages=[]))
    assert [message["type"] for message in sent] == ["http.response.start"]
    failure, _ = lines()
    assert failure["exception"][0]["exc_value"] == "too late"


# Keys.


@pytest.mark.parametrize(
    ("header", "value"),
    [("authorization", "Bearer {}"), ("authorization", "bearer   {}"), ("x-api-key", "{}")],
)
def test_a_key_lets_in_and_says_whose_it_is(call, lines, key, header, value):
    headers = {"authorization": "", header: value.format(key.secret)}
    assert call("POST", "/things/x", headers=headers).status_code == 200
    assert lines()[0]["client"] == "alice"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Basic x"}, {"authorization": "Bearer "}, {"x-api-key": " "}]
)
@pytest.mark.parametrize("path", ["/things/x", "/nothing", "/docs", "/openapi.json", "/livez/"])
def test_without_a_key_everything_but_the_probes_is_closed(call, lines, path, headers):
    answer = call("POST", path, headers={"authorization": "", **headers})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert kind(answer) == lines()[0]["problem"] == "key-required"
    assert "the request brought none" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_and_metrics_need_no_key(call, path):
    assert call("GET", path, headers={"authorization": ""}).status_code == 200


@pytest.mark.parametrize("wrong", ["geheim", "alice", "é".encode(), b"\xff"])
def test_a_wrong_key_is_refused_as_wrong_and_written_nowhere(call, lines, wrong):
    answer = call("POST", "/things/x", headers={"authorization": "", "x-api-key": wrong})
    assert answer.status_code == 403
    assert answer.json()["detail"].startswith("the API key is wrong")
    (line,) = lines()
    assert kind(answer) == line["problem"] == "key-unknown"
    assert "client" not in line
    assert "geheim" not in str(line) + answer.text


def test_what_is_not_http_finds_nobody_in(app):
    sent = asyncio.run(drive(app, messages=[], type="websocket", path="/things/x"))
    assert sent == []


def test_no_key_is_ever_logged(call, capfd, key):
    for log_format in ("human", "json"):
        logs.configure(log_format, "debug")
        call("POST", "/things/x")
        call("POST", "/things/x", headers={"authorization": "", "x-api-key": key.secret[:-1]})
        assert key.secret[:-1] not in capfd.readouterr().err


# Rates.


def test_a_used_up_rate_says_when_to_come_back(call):
    assert call("GET", "/charged/4").status_code == 200
    answer = call("GET", "/charged/1")
    assert answer.status_code == 429
    assert kind(answer) == "rate-limited"
    assert answer.headers["retry-after"] == "2"


def test_more_than_a_bucket_holds_is_another_mistake(call):
    answer = call("GET", "/charged/5")
    assert answer.status_code == 413
    assert kind(answer) == "above-burst"
    assert "retry-after" not in answer.headers


# Bodies.


async def drive(app, *, messages: list[dict], headers=(), **changes: Any) -> list[dict]:
    """Call the application as a server would; `messages` are received, then nothing comes."""
    scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)} | changes
    sent: list[dict] = []

    async def receive():
        return messages.pop(0) if messages else await asyncio.Future()

    async def send(message):
        sent.append(message)

    async with asyncio.timeout(5):
        await app(scope, receive, send)
    return sent


def part(size: int, more: bool) -> dict:
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


CHUNKED = ((b"transfer-encoding", b"chunked"),)


def test_a_body_up_to_the_limit_arrives_whole(call):
    async def pieces():
        for _ in range(10):
            yield b"x" * (LIMIT // 10)

    for content in (b"", b"x" * LIMIT, pieces()):
        answer = call("POST", "/things/x", content=content)
        assert answer.json()["body"] == (0 if content == b"" else LIMIT)


def test_a_body_that_says_it_is_too_large_is_not_read():
    messages = [part(LIMIT, True)]
    headers = [(b"content-length", b"%d" % (LIMIT + 1))]
    sent = asyncio.run(drive(BodyLimit(never, LIMIT), messages=messages, headers=headers))
    assert sent[0]["status"] == 413
    assert len(messages) == 1
    assert json.loads(sent[1]["body"])["type"].endswith(":body-too-large")


@pytest.mark.parametrize("more", [True, False])
def test_a_chunked_body_is_read_up_to_the_limit_and_no_further(more):
    messages = [part(LIMIT, True), part(1, more), part(LIMIT, True)]
    sent = asyncio.run(drive(BodyLimit(never, LIMIT), messages=messages, headers=CHUNKED))
    assert sent[0]["status"] == 413
    assert len(messages) == 1


def test_a_client_that_leaves_in_the_middle_of_its_body_reaches_nothing():
    messages = [part(1, True), {"type": "http.disconnect"}]
    sent = asyncio.run(drive(BodyLimit(never, LIMIT), messages=messages, headers=CHUNKED))
    assert sent[0]["status"] == 499


def test_a_client_that_leaves_after_its_body_is_noticed():
    async def app(scope, receive, send):
        assert await receive() == part(3, False)
        assert await receive() == {"type": "http.disconnect"}
        await Response(status_code=204)(scope, receive, send)

    messages = [part(1, True), part(2, False), {"type": "http.disconnect"}]
    sent = asyncio.run(drive(BodyLimit(app, LIMIT), messages=messages, headers=CHUNKED))
    assert sent[0]["status"] == 204


async def never(*_: Any) -> None:
    raise AssertionError("the request came through")
