"""The real server in a real process: start, images, metrics, an orderly end, and no torch."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest

from tests.service.waiting import until

pytestmark = pytest.mark.slow


@contextmanager
def serving(
    models, *arguments: str, log: Path | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `sid serve` on a free port; yields the process and its URL once it is ready.

    The server's log goes to a pipe that nobody reads until the end, so a test that wants all of
    more than some hundred lines has to name a file for it.
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
        announced = process.stdout.readline()
        assert announced, log.read_text() if log else process.stderr.read()
        yield process, re.search(r"http://[0-9.:]+", announced)[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


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
        assert http.get(f"{url}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        until(lambda: http.get(f"{url}/readyz").status_code == 503)
        assert http.post(f"{url}/generate", json={}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_closing_its_terminal_ends_it(models):
    """SIGHUP reloads the models, but not where it means what it always meant."""
    terminal, inside = os.openpty()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--models", str(models)]
    process = subprocess.Popen(
        command,
        stdin=inside,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    assert process.stdout.readline()
    os.close(terminal)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


def test_logs_are_json_where_that_is_asked_for(models):
    with serving(models, SID_LOG_FORMAT="json") as (process, url):
        httpx.post(f"{url}/generate", json={"seed": -1})
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        (line,) = process.stderr.read().splitlines()
    logged = json.loads(line)
    assert logged["event"] == "request"
    assert logged["status"] == 422
    assert logged["path"] == "/generate"


def test_a_log_that_nobody_reads_stops_neither_requests_nor_the_end(models):
    with serving(models) as (process, url), httpx.Client(base_url=url) as http:
        for _ in range(400):  # lines of about 100 KiB; a pipe holds 64
            answer = http.get("/models", headers={"x-request-id": "y" * 128})
            assert answer.status_code == 200
        assert http.get("/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


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
