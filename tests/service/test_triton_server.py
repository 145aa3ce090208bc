"""`sid triton`: the real server and the gateway over it, started and ended together."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.triton import free_ports, triton_over
from tests.service.waiting import until

pytestmark = pytest.mark.slow


@contextmanager
def sid_triton(models, http, grpc, metrics):
    command = [sys.executable, "-m", "service.cli", "triton", "--port", "0", "--models", models]
    for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{name}-port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def servers(models) -> list[int]:
    """The tritonservers over this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(b"tritonserver") and f"{models}".encode() in arguments[1]:
                found.append(int(entry.name))
    return found


def test_it_draws_and_ends_with_its_triton(models):
    with sid_triton(models, *free_ports(3)) as process:
        assert "Triton is ready" in process.stdout.readline()
        url = re.search(r"http://[0-9.:]+", process.stdout.readline())[0]
        assert httpx.post(f"{url}/generate", json={"seed": 7}).status_code == 200
        assert len(servers(models)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert "Traceback" not in process.stderr.read()
    assert servers(models) == []


def test_a_kill_leaves_no_triton_behind(models):
    with sid_triton(models, *free_ports(3)) as process:
        assert "Triton is ready" in process.stdout.readline()
        process.kill()
        until(lambda: not servers(models))


def test_a_taken_port_is_one_line_and_not_somebody_elses_triton(models):
    http, grpc, metrics = free_ports(3)
    with (
        socket.create_server(("127.0.0.1", grpc)),
        sid_triton(models, http, grpc, metrics) as process,
    ):
        assert process.wait(timeout=60) == 2
        error = process.stderr.read()
    assert error.startswith(f"error: cannot listen on 127.0.0.1:{grpc}: Address already in use")
    assert error.count("\n") == 1


def test_a_model_that_triton_cannot_load_ends_the_start_with_its_reason(models):
    (models / "tiny" / "config.pbtxt").write_text('backend: "nonsense"')
    with sid_triton(models, *free_ports(3)) as process:
        assert process.wait(timeout=60) == 2
        assert "nonsense" in process.stderr.read()


def test_its_start_forks_no_process_that_has_threads(models):
    """Where gRPC runs, its poller aborts in one of about a thousand forked children."""
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))
    with triton_over(models):
        assert not forks
