"""Traces at a real receiver: who asked, which batch drew it, and what the engine did."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from random import getrandbits

import httpx
import pytest

from service.app import create_app
from service.engines import EngineError, Prepared
from service.engines.onnx import OnnxEngine
from service.observability.tracing import sent_traceparent
from service.settings import Settings
from tests.bundles import A_WHILE, FOR_EVER, write_bundle
from tests.service.client import Client
from tests.service.otlp import collector, http_collector
from tests.service.test_process import run_python, serving
from tests.service.triton import free_ports, triton_over
from tests.service.waiting import happens, turns, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SLOW, FAST = 0, 1  # classes
MODEL_INFER = "inference.GRPCInferenceService/ModelInfer"
TRITON_SPANS = {"InferRequest", "tiny", "compute"}  # of each call


@pytest.fixture
def received():
    """What a collector receives; complete when the gateway has ended."""
    with collector() as received:
        yield received


@pytest.fixture(scope="module")
def slow_models(tmp_path_factory):
    models = tmp_path_factory.mktemp("slow")
    write_bundle(models, turns=A_WHILE)
    return models


@pytest.fixture(scope="module")
def triton(slow_models):
    """Triton that traces nothing of its own accord, and where its spans arrive."""
    with http_collector() as received:
        options = (
            "mode=opentelemetry",
            f"opentelemetry,url={received.url}",
            "opentelemetry,bsp_schedule_delay=50",
            "rate=0",
            "level=TIMESTAMPS",
        )
        with triton_over(
            slow_models, *(f"--trace-config={option}" for option in options)
        ) as triton:
            yield triton, received


@contextmanager
def gateway(models, traces=None, **settings):
    settings = {"threads": 1, "concurrency": 1, "traces": traces} | settings
    with Client(create_app(Settings(models=models, **settings))) as client:
        yield client


async def first_slow_then(client, *requests):
    """The answers to requests that wait together while a slow image is drawn."""
    slow = asyncio.create_task(client.http.post("/generate", json={"class_label": SLOW}))
    await turns(200)  # all that it takes until it is drawn happens on this loop
    answers = await asyncio.gather(*requests)
    assert (await slow).status_code == 200
    return answers


def test_a_request_is_one_trace_of_gateway_batch_and_engine(models, received):
    with gateway(models, received.url) as client:
        assert client.generate({"n": 2}).status_code == 200
        for probe in ("/livez", "/readyz", "/metrics"):
            client.get(probe)
    request, batch = received.one("POST /generate"), received.one("batch")
    queue, engine = received.one("queue"), received.one("onnxruntime")
    assert len(received) == 4, "probes are not traced, nor is the canary"
    assert {span.trace for span in received} == {request.trace}
    assert {span.service for span in received} == {"sid-serve"}
    assert (request.parent, queue.parent, batch.parent, engine.parent) == (
        "",
        request.id,
        request.id,
        batch.id,
    )
    assert (request.kind, batch.kind, engine.kind) == ("SERVER", "INTERNAL", "INTERNAL")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "url.path": "/generate",
        "url.scheme": "http",
        "sid.model": "tiny",
    }
    assert {"sid.model": "tiny", "sid.batch.size": 2}.items() <= batch.attributes.items()
    assert batch.attributes["sid.batch.reason"] == "idle"
    before, after = engine.start - batch.start, batch.end - engine.end
    assert 0 < batch.attributes["sid.batch.latents_ms"] < before * 1000
    assert 0 < batch.attributes["sid.batch.encode_ms"] < after * 1000
    assert engine.attributes["sid.engine"].startswith("onnxruntime 1.")
    assert request.start <= queue.start <= queue.end == batch.start < engine.start
    assert engine.end < batch.end <= request.end
    assert not any(span.error or span.links for span in received)


def test_a_batch_that_is_drawn_again_shows_both_engines(models, received, monkeypatch):
    generate, broken = OnnxEngine.generate, False

    async def breakable(engine, prepare, finish, deadline=None):
        def impossible():
            inputs = prepare().inputs
            return Prepared(inputs | {"class_labels": inputs["class_labels"] + 99})

        breaks = broken and engine.device == "cpu:0"
        return await generate(engine, impossible if breaks else prepare, finish, deadline)

    monkeypatch.setattr(OnnxEngine, "generate", breakable)
    with gateway(models, received.url, devices="cpu,cpu") as client:
        broken = True
        assert client.generate({}).status_code == 200
    request, batch = received.one("POST /generate"), received.one("batch")
    failed, drew = sorted(received.named("onnxruntime"), key=lambda span: span.start)
    assert failed.parent == drew.parent == batch.id
    assert (failed.error, drew.error, batch.error, request.error) == (True, False, False, False)
    assert failed.start < failed.end <= drew.start < drew.end < batch.end


@pytest.mark.slow
def test_the_client_s_trace_is_continued_and_its_id_is_in_the_log(models, received, tmp_path):
    log = tmp_path / "log"
    traced = {"SID_TRACES": received.url, "SID_LOG_FORMAT": "json", "OTEL_SERVICE_NAME": "images"}
    with serving(models, log=log, **traced) as (process, url), httpx.Client(base_url=url) as http:
        http.post("/generate", json={}, headers={"traceparent": SENT})
        http.post(
            "/generate",
            json={},
            headers={"traceparent": NOT_SAMPLED, "tracestate": f"x={'y' * 600}"},  # too long
        )
        http.post("/generate", json={}, headers={"traceparent": SENT.upper()})
        http.get("/nothing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    ours, other = received.named("POST /generate")
    assert {span.service for span in received} == {"images"}
    assert (ours.trace, ours.parent) == (TRACE, PARENT)
    assert (other.trace != TRACE, other.parent) == (True, ""), "malformed: a trace of its own"
    assert [span.trace for span in received.named("batch")] == [TRACE, other.trace]
    unknown = received.one("GET")
    assert "http.route" not in unknown.attributes, "its paths are without number"
    assert not unknown.error, "404 is the client's"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["trace_id"] for line in requests] == [TRACE, TRACE, other.trace, unknown.trace]


def test_a_batch_and_its_requests_are_linked_both_ways(slow_models, received):
    with gateway(slow_models, received.url) as client:

        def ask(**headers):
            return client.http.post("/generate", json={"class_label": FAST}, headers=headers)

        client.run(first_slow_then(client, ask(traceparent=NOT_SAMPLED), ask(), ask(), ask()))
    batch = received.named("batch")[1]
    assert batch.attributes["sid.batch.size"] == 4
    assert batch.attributes["sid.batch.reason"] == "freed"
    sampled = sorted(received.named("POST /generate"), key=lambda span: span.start)[1:]
    first, *others = sampled
    assert (len(sampled), batch.parent, batch.trace) == (3, first.id, first.trace)
    assert set(batch.links) == {span.id for span in others}
    assert {span.links for span in others} == {(batch.id,)}
    assert first.links == ()
    queues = {span.parent: span for span in received.named("queue")}
    for span in sampled:
        assert queues[span.id].trace == span.trace
        assert queues[span.id].seconds > 0.05


def test_requests_that_share_a_drawing_are_linked_with_its_batch(slow_models, received):
    url = f"/generate?class_label={FAST}&seed=7"
    with gateway(slow_models, received.url) as client:
        client.run(first_slow_then(client, *(client.http.get(url) for _ in range(3))))
    batch = received.named("batch")[1]
    assert batch.attributes["sid.batch.size"] == 1
    first, *others = sorted(received.named("GET /generate"), key=lambda span: span.start)
    assert batch.parent == first.id
    assert [span.links for span in others] == [(batch.id,)] * 2


def test_a_request_that_was_answered_before_its_batch_began(models, received, capfd, monkeypatch):
    """It set a deadline, but its image is still drawn for one that asked for the same."""
    engine_is_free, generate = asyncio.Event(), OnnxEngine.generate

    async def generate_when_free(*arguments):
        await engine_is_free.wait()
        return await generate(*arguments)

    with gateway(models, received.url) as client:
        monkeypatch.setattr(OnnxEngine, "generate", generate_when_free)

        def ask(seed, **headers):
            return asyncio.create_task(client.http.get(f"/generate?seed={seed}", headers=headers))

        async def ask_four():
            running = ask(0)
            await turns(200)
            others = [ask(1)]
            for headers in ({"X-Deadline-Ms": "400"}, {}):
                await turns(200)
                others.append(ask(2, **headers))
            await others[1]
            engine_is_free.set()
            await running
            return await asyncio.gather(*others)

        answers = client.run(ask_four())
    assert [answer.status_code for answer in answers] == [200, 504, 200]
    batch = received.named("batch")[1]
    _, first, late, last = sorted(received.named("GET /generate"), key=lambda span: span.start)
    assert (batch.parent, batch.links) == (first.id, (late.id,))
    assert (late.error, late.attributes["error.type"]) == (True, "504")
    assert (late.links, last.links) == ((), (batch.id,))
    assert "traces are lost" not in "".join(capfd.readouterr())


def test_a_failure_is_an_error_from_the_engine_to_the_request(models, received, monkeypatch):
    async def fail(_, prepare, *__):
        prepare()
        raise EngineError("tiny: out of order")

    with gateway(models, received.url) as client:
        monkeypatch.setattr(OnnxEngine, "generate", fail)
        assert client.generate({}).status_code == 503
    request, batch = received.one("POST /generate"), received.one("batch")
    assert request.error
    assert request.attributes["error.type"] == "503"
    for span in (batch, received.one("onnxruntime")):
        assert (span.error, span.said) == (True, "tiny: out of order")
        assert span.attributes["error.type"] == "EngineError"
    assert not received.one("queue").error


def test_clients_that_leave_end_their_trace_and_their_batch_s(tmp_path, received, monkeypatch):
    write_bundle(tmp_path / "models", turns=FOR_EVER)
    computing, generate = threading.Event(), OnnxEngine.generate

    async def noted(engine, prepare, *others):
        def prepared():
            found = prepare()
            if SLOW in found.inputs["class_labels"]:  # else it is the supervisor's canary
                computing.set()
            return found

        return await generate(engine, prepared, *others)

    async def leave(client):
        computing.clear()
        asking = asyncio.create_task(client.http.post("/generate", json={"class_label": SLOW}))
        await happens(computing.is_set)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    with gateway(tmp_path / "models", received.url) as client:
        monkeypatch.setattr(OnnxEngine, "generate", noted)
        late = client.generate({"class_label": SLOW}, **{"X-Deadline-Ms": "500"})
        assert late.status_code == 504
        client.run(leave(client))
    batches = received.named("batch")
    assert [span.attributes["error.type"] for span in batches] == ["CancelledError"] * 2
    assert len(received.named("onnxruntime")) == 2


def test_off_by_default_and_then_the_sdk_is_not_imported(models):
    run_python(f"""
import sys
from service.app import create_app
from service.settings import Settings
from tests.service.client import Client
with Client(create_app(Settings(models={str(models)!r}))) as client:
    assert client.generate({{}}, traceparent={SENT!r}).status_code == 200
# The API alone, which FastAPI itself imports since 0.165, makes no spans.
heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "grpc")
assert not [name for name in sys.modules if name.startswith(heavy)]
""")


@contextmanager
def silent():
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def refusing():
    yield free_ports(1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("address", [refusing, silent])
def test_a_collector_that_is_away_costs_one_line_and_no_time(models, address, tmp_path):
    log = tmp_path / "log"
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16"}
    with address() as port, httpx.Client() as http:
        environment = {"SID_TRACES": f"http://127.0.0.1:{port}", "SID_LOG_LEVEL": "warning"}
        with serving(models, log=log, **environment, **small) as (process, url):
            slowest = 0.0
            for seed in range(150):
                sent = time.monotonic()
                assert http.post(f"{url}/generate", json={"seed": seed}).status_code == 200
                slowest = max(slowest, time.monotonic() - sent)
            process.send_signal(signal.SIGTERM)
            stopped = time.monotonic()
            assert process.wait(timeout=60) == 0
            assert time.monotonic() - stopped < 20, "by OpenTelemetry's default it would be 30 s"
    assert slowest < 5, "nobody waits for the exporter's 10 s"
    (line,) = log.read_text().splitlines()
    assert "traces are lost" in line


def test_a_collector_that_comes_back_gets_what_comes_then(models, monkeypatch, capfd):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setattr("service.observability.tracing.spans._QUIET_SECONDS", 0)
    (port,) = free_ports(1)
    said = ""

    def logged(event):
        nonlocal said
        said += "".join(capfd.readouterr())
        return event in said

    with gateway(models, f"http://127.0.0.1:{port}") as client:
        client.generate({"seed": 1})
        until(lambda: logged("traces are lost"))
        with collector(port) as received:
            until(lambda: client.generate({"seed": 2}) and received.named("batch"))
            until(lambda: logged("traces are delivered again"))
    assert said.count("traces are lost") == 1


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"SID_TRACES": "http://collector:4317"}, "SID_TRACES needs the extra `tracing`, `.venv/"),
        ({"SID_TRACES": "collector:4317"}, "SID_TRACES: String should match pattern"),
    ],
)
def test_what_is_missing_is_one_line(models, environment, says):
    (line,) = failing_start(models, environment, "sys.modules['opentelemetry.sdk'] = None")
    assert line.startswith(f"error: {says}")


def test_an_otel_variable_that_makes_no_sense_is_one_line(models):
    environment = {"SID_TRACES": "http://collector:4317", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}
    (line,) = failing_start(models, environment, "")
    assert line.startswith("error: SID_TRACES: OpenTelemetry cannot be set up: could not convert")


def failing_start(models, environment, before):
    """What `sid serve` says when it does not start."""
    code = f"import sys; {before}\nfrom service.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", "0", "--models", str(models)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (SENT, True),
        (NOT_SAMPLED, True),
        (SENT.upper(), False),
        (f"{SENT}-00", False),
        (f"01{SENT[2:]}", False),
        (f" {SENT}", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        ("", False),
    ],
)
def test_the_form_of_a_traceparent(sent, taken):
    scope = {"headers": [(b"host", b"x"), (b"traceparent", sent.encode())]}
    assert sent_traceparent(scope) == (sent if taken else None)


def new_trace():
    """An id that no other test has: Triton's spans may come late."""
    return f"{getrandbits(128):032x}"


def draw_until_traced(client, spans, trace):
    """Draw in a trace until Triton's spans of it have come.

    Its exporter loses some now and then, whoever calls it: of 80 calls in a trial, one call's.
    """

    def came():
        return {span.name for span in spans if span.trace == trace} == TRITON_SPANS

    def draw():
        traceparent = f"00-{trace}-{PARENT}-01"
        assert client.generate({"class_label": FAST}, traceparent=traceparent).status_code == 200
        with suppress(AssertionError):
            until(came, 1)
        return came()

    until(draw)


@pytest.mark.slow
def test_triton_s_own_spans_are_children_of_ours(triton, slow_models, received):
    server, spans = triton
    trace = new_trace()
    with gateway(slow_models, received.url, triton=server.address) as client:
        draw_until_traced(client, spans, trace)
    engines, batches = received.named(MODEL_INFER), received.named("batch")
    assert {span.trace for span in received} == {trace}
    assert [span.parent for span in engines] == [span.id for span in batches]
    for engine in engines:
        assert engine.kind == "CLIENT"
        assert engine.attributes == {
            "sid.engine": "triton 2.51.0",
            "rpc.system.name": "grpc",
            "rpc.method": MODEL_INFER,
        }
    parents = {span.id for span in engines}
    for name in ("InferRequest", "tiny", "compute"):
        found = [span for span in spans.named(name) if span.trace == trace]
        assert {span.parent for span in found} <= parents
        parents = {span.id for span in found}


@pytest.mark.slow
def test_triton_is_not_told_of_a_trace_that_is_not_sampled(triton, slow_models, received):
    """Because it would trace that too: it looks at the ids only (its server's issue 8474)."""
    server, spans = triton
    quiet = new_trace()
    with gateway(slow_models, received.url, triton=server.address) as client:
        for _ in range(3):
            client.generate({"class_label": FAST}, traceparent=f"00-{quiet}-{PARENT}-00")
        draw_until_traced(client, spans, new_trace())
    assert quiet not in {span.trace for span in (*spans, *received)}


def test_off_the_batch_belongs_to_the_first_trace_that_one_brought(slow_models, monkeypatch):
    told = []
    generate = OnnxEngine.generate

    async def note(engine, prepare, finish, deadline):
        def noted():
            prepared = prepare()
            told.append(prepared.traceparent)
            return prepared

        return await generate(engine, noted, finish, deadline)

    with gateway(slow_models) as client:
        monkeypatch.setattr(OnnxEngine, "generate", note)

        def ask(**headers):
            return client.http.post("/generate", json={"class_label": FAST}, headers=headers)

        waiting = ask(), ask(traceparent=NOT_SAMPLED), ask(traceparent=SENT)
        client.run(first_slow_then(client, *waiting))
    assert told == [None, NOT_SAMPLED], "unchanged, whatever its flags"


@pytest.mark.slow
def test_off_the_client_s_traceparent_goes_on_to_triton(triton, slow_models):
    server, spans = triton
    trace, malformed = new_trace(), new_trace()
    with gateway(slow_models, triton=server.address) as client:

        def ask(**headers):
            return client.http.post("/generate", json={"class_label": FAST}, headers=headers)

        sent = f"00-{malformed}-{PARENT}-01-more"
        client.run(first_slow_then(client, *(ask(traceparent=sent) for _ in range(3))))
        draw_until_traced(client, spans, trace)
    found = {(span.trace, span.parent) for span in spans.named("InferRequest")}
    assert (trace, PARENT) in found
    assert malformed not in {span.trace for span in spans}


@pytest.mark.slow
def test_a_cancelled_call_to_triton_is_traced_as_such(triton, slow_models, received):
    server, _ = triton
    with gateway(slow_models, received.url, triton=server.address) as client:
        answer = client.generate({"class_label": SLOW}, **{"X-Deadline-Ms": "50"})
        assert answer.status_code == 504
    for span in (received.one("batch"), received.one(MODEL_INFER)):
        assert span.attributes["error.type"] in ("CancelledError", "EngineDeadlineError")
