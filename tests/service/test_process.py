"""The real server in a real process: start, images, metrics, an orderly end, and no torch."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from tests.before_exec import TAKE_TERMINAL, before_exec
from tests.bundles import served_tag
from tests.service.waiting import until

pytestmark = pytest.mark.slow


@contextmanager
def serving(
    models, *arguments: str, log: Path | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `sid serve` on a free port; yields the process and its URL once it is ready.

    The server's log goes to a pipe that nobody reads until the end, so a test that wants all of
    more than some hundred lines has to name a file for it. In JSON nothing is announced but by the
    log's line `started`, which a pipe then lacks.
    """
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--models", str(models)]
    with log.open("w") if log else nullcontext(subprocess.PIPE) as stderr:
        process = subprocess.Popen(
            [*command, *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        if environment.get("SID_LOG_FORMAT") == "json":
            announced = started(process, log)
        else:
            announced = process.stdout.readline()
        assert announced, log.read_text() if log else process.stderr.read()
        yield process, re.search(r"http://[0-9a-f.:\[\]]+", announced)[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def started(process: subprocess.Popen, log: Path | None) -> str:
    """Wait for the line `started` of a server whose log is JSON; "": it ended before."""

    def lines() -> Iterator[str]:
        if log is None:
            yield from iter(process.stderr.readline, "")
            return
        until(lambda: STARTED in log.read_text() or process.poll() is not None)
        yield from log.read_text().splitlines()

    return next((line for line in lines() if STARTED in line), "")


STARTED = '"event":"started"'


def test_it_serves_where_standard_error_is_closed(models):
    """As `sid serve 2>&-`: its log must not go into the first file that it opens."""
    command = f"exec {sys.executable} -m service.cli serve --port 0 --models {models} 2>&-"
    process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://[0-9.:]+", process.stdout.readline())[0]
        for _ in range(3):
            assert httpx.post(f"{url}/generate", json={"seed": 7}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_it_starts_serves_and_ends_in_order(models):
    body = {"class_label": "Dress", "seed": 7}
    with serving(models) as (process, url), httpx.Client(base_url=url) as http:
        image = http.post("/generate", json=body)
        metrics = http.get("/metrics").text
        assert http.get("/readyz").status_code == 200
        example = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert "Traceback" not in process.stderr.read()
    assert image.content.startswith(b"\x89PNG")
    assert json.loads(re.search(r"-d '(.*)' -o", example)[1]) == body
    # At most 3 s from start to first image: processor time, for tests share their machine.
    assert float(re.search(r"^process_cpu_seconds_total (\S+)", metrics, re.M)[1]) < 3


def test_readiness_fails_first_and_a_second_signal_ends_the_wait(models):
    with serving(models, SID_DRAIN_SECONDS="60") as (process, url), httpx.Client() as http:
        assert "connection" not in http.get(f"{url}/readyz").headers
        process.send_signal(signal.SIGTERM)
        until(lambda: http.get(f"{url}/readyz").status_code == 503)
        answer = http.post(f"{url}/generate", json={})
        # Served, and the client is sent away: its next request is to reach another server.
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_closing_its_terminal_ends_it(models):
    """SIGHUP reloads the models, but not where it means what it always meant."""
    terminal, inside = os.openpty()
    serve = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--models", models]
    process = subprocess.Popen(
        before_exec(TAKE_TERMINAL, *serve),
        stdin=inside,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(inside)
    assert process.stdout.readline()
    os.close(terminal)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


SPEAK_UP = """
import os, signal, threading, warnings

class Fails:
    def __del__(self):
        raise ValueError("at its end")

def fail():
    raise ValueError("in a thread")

def speak_up(*_):
    os.write(2, b"a library's own line\\n")
    os.write(1, b"and on standard output\\n")
    print("printed")
    warnings.warn("warned of")
    Fails()
    threading.Thread(target=fail, name="frail").start()

signal.signal(signal.SIGUSR1, speak_up)
"""


def test_where_the_log_is_json_every_line_is(models, tmp_path):
    """Of the server, its libraries and Python itself, from the start to the end."""
    (tmp_path / "sitecustomize.py").write_text(SPEAK_UP)
    log = tmp_path / "log"
    search = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    json_lines = {"SID_LOG_FORMAT": "json", "PYTHONPATH": search}

    def said() -> list[dict]:
        return [json.loads(line) for line in log.read_text().splitlines() if line]

    def is_said(word: str) -> bool:
        return word in log.read_text()

    with serving(models, log=log, **json_lines) as (process, url):
        httpx.post(f"{url}/generate", json={"seed": 1})
        httpx.post(f"{url}/generate", json={"seed": -1})
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        process.send_signal(signal.SIGUSR1)
        until(lambda: is_said("in a thread"))
        process.send_signal(signal.SIGHUP)
        until(lambda: is_said('"reloaded"'))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        printed = [json.loads(line)["event"] for line in process.stdout.read().splitlines()]
    assert printed == ["and on standard output", "printed"]
    lines = {line["event"].partition(":")[0]: line for line in said()}
    start = lines["started"]
    assert start["version"] == version("sid-serve")
    assert start["address"] == url
    assert start["models"] == [served_tag(models / "tiny")]
    assert (start["default"], start["keys"], start["because"]) == ("tiny", 0, "the default")
    assert start["engine"].startswith("onnxruntime ")
    refused = next(line for line in said() if line.get("status") == 422)
    assert (refused["level"], refused["problem"]) == ("info", "seed-out-of-range")
    assert lines["request refused"]["problem"] == "malformed"
    assert lines["draining"]["because"] == "SIGTERM"
    assert lines["a library's own line"]["logger"] == "stderr"
    assert lines["the thread frail failed"]["exception"][0]["exc_value"] == "in a thread"
    assert "warned of" in lines["UserWarning"]["event"]
    assert any("at its end" in str(line.get("exception")) for line in said())
    assert said()[-1]["event"] == "ended"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"SID_PORT": "many"}, "SID_PORT: "),
        ({"SID_KEY": "keys.txt"}, "SID_KEY is the client's"),
        ({"SID_MODELS": "nowhere"}, "nowhere: there is no such folder"),
    ],
)
def test_a_start_that_is_refused_is_a_line_of_json_too(wrong, says):
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        env=os.environ | {"SID_LOG_FORMAT": "json", "SID_PORT": "0"} | wrong,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    line = json.loads(done.stderr)
    assert (done.returncode, done.stdout, line["level"]) == (2, "", "error")
    assert says in line["reason"]


def test_a_log_that_nobody_reads_stops_neither_requests_nor_the_end(models):
    with serving(models) as (process, url), httpx.Client(base_url=url) as http:
        for _ in range(400):  # lines of about 100 KiB; a pipe holds 64
            answer = http.get("/models", headers={"x-request-id": "y" * 128})
            assert answer.status_code == 200
        assert http.get("/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_metrics_on_a_port_of_their_own_are_there_and_nowhere_else(models, tmp_path):
    log = tmp_path / "log"
    settings = {"SID_LOG_FORMAT": "json", "SID_METRICS_PORT": "0", "SID_DRAIN_SECONDS": "60"}
    with serving(models, log=log, **settings) as (process, url), httpx.Client() as http:
        apart = next(json.loads(s) for s in log.read_text().splitlines() if STARTED in s)["metrics"]
        assert http.post(f"{url}/generate", json={"seed": 7}).status_code == 200
        assert http.get(f"{url}/metrics").status_code == 404
        assert "/metrics" not in http.get(f"{url}/openapi.json").json()["paths"]
        shown = http.get(f"{apart}/metrics")
        assert shown.headers["content-type"].startswith("text/plain; version=")
        drawn = 'sid_requests_total{model="tiny",route="/generate",status="200"} 1.0'
        assert drawn in shown.text
        for path in ("/", "/generate?seed=7", "/readyz", "/docs"):
            answer = http.get(f"{apart}{path}")
            assert (answer.status_code, answer.json()["type"][-9:]) == (404, "not-found")
        assert http.post(f"{apart}/metrics").status_code == 405
        process.send_signal(signal.SIGTERM)
        until(lambda: http.get(f"{url}/readyz").status_code == 503)
        assert http.get(f"{apart}/metrics").status_code == 200  # while it drains
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in log.read_text()


def test_a_taken_port_is_one_line(models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve", "--port", port, "--models", models],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("service.server", {"torch", "distill", "onnx"}),
        ("service.bundle", {"torch", "fastapi", "onnxruntime", "PIL"}),
        ("service.cli", {"torch", "fastapi", "numpy", "pydantic"}),
    ],
)
def test_what_is_not_needed_is_not_imported(module, forbidden):
    run_python(f"import sys, {module}; sys.exit(' '.join({forbidden} & set(sys.modules)) or 0)")


def test_no_torch_after_an_image(models):
    """The whole path in one process: what is imported late would show here."""
    run_python(f"""
import sys
from service.cli import main
sys.argv = ["sid", "generate", "--models", {str(models)!r}, "-o", {str(models / "x.png")!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert "onnxruntime" in sys.modules
assert "torch" not in sys.modules
""")


def run_python(code: str) -> None:
    """Run `code` in a new process, which must have nothing to say on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


@pytest.mark.parametrize("half", ["service", "distill"])
def test_onnx_runtime_is_told_not_to_report_on_its_use(half):
    """Before it is loaded, or it would be too late."""
    run_python(
        f"import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None); import {half};"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'; assert 'onnxruntime' not in sys.modules"
    )
