"""The end of the process: what was accepted is answered, what hangs holds nobody, exit status 0."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.bundles import FOR_EVER, write_bundle
from tests.service.test_process import serving
from tests.service.waiting import metrics_show, until

pytestmark = pytest.mark.slow


def test_everything_accepted_before_sigterm_is_answered(tmp_path):
    """Most of it waits in the queue when the signal comes."""
    write_bundle(tmp_path / "models", resolution=128)
    log, settings = tmp_path / "log", {"SID_CONCURRENCY": "1", "SID_MAX_BATCH_SIZE": "1"}
    with serving(tmp_path / "models", log=log, **settings) as (process, url):

        async def scenario() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                posts = [
                    asyncio.create_task(http.post("/generate", json={"seed": seed, "n": 8}))
                    for seed in range(20)
                ]
                await metrics_show(http, r"sid_queue_depth\{.*\} ([5-9]|1.)[0-9]")
                process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*posts)

        answers = asyncio.run(scenario())
        assert process.wait(timeout=60) == 0
    assert {answer.status_code for answer in answers} == {200}
    for seed, answer in enumerate(answers):
        assert answer.json()["images"][0]["seed"] == seed


def test_a_batch_that_hangs_holds_the_process_for_its_grace_only(tmp_path):
    grace = 1
    write_bundle(tmp_path / "models", turns=FOR_EVER)
    log = tmp_path / "log"
    settings = {"SID_GRACE_SECONDS": str(grace), "SID_CONCURRENCY": "1", "SID_MAX_BATCH_SIZE": "1"}
    with serving(tmp_path / "models", log=log, **settings) as (process, url):

        async def scenario() -> tuple[list[httpx.Response], float]:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                posts = [http.post("/generate", json={"class_label": 0}) for _ in range(2)]
                posts = [asyncio.create_task(post) for post in posts]
                await metrics_show(http, r"sid_queue_depth\{.*\} 1")  # the other one hangs
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*posts, return_exceptions=True), started

        answers, started = asyncio.run(scenario())
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - started < grace + 14, "by default it would be 20 s"
    for answer in answers:
        assert isinstance(answer, httpx.Response), f"cut off: {answer!r}"
        assert answer.status_code == 503
        assert json.loads(answer.content)["type"].endswith(":draining")
    failed = [line for line in log.read_text().splitlines() if "problem=draining" in line]
    assert [line.split()[1] for line in failed] == ["error", "error"]


@contextmanager
def loading(models, log, *before):
    """A server that reads a model's file from a pipe; yields it, the pipe and where that lies.

    So it goes on loading for as long as nothing is written.
    """
    content = b"slow"
    folder = write_bundle(models)
    metadata = json.loads((folder / "manifest.json").read_text())
    metadata["files"]["1/slow"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(metadata))
    os.mkfifo(folder / "1" / "slow")
    command = [*before, sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--models", str(models)],
            env=os.environ | {"SID_LOG_FORMAT": "json"},
            stdout=subprocess.PIPE,
            stderr=file,
        )
    found = []

    def reads():
        assert process.poll() is None, log.read_text()
        try:
            pipe = os.open(folder / "1" / "slow", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            return False
        found.append(os.fdopen(pipe, "wb", buffering=0))
        return True

    try:
        until(reads)
        yield process, found[0], folder / "1" / "slow"
    finally:
        for pipe in found:
            pipe.close()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_load_ends_it_in_order(tmp_path, number):
    with loading(tmp_path / "models", tmp_path / "log") as (process, *_):
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def _may_unshare() -> bool:
    if (unshare := shutil.which("unshare")) is None:
        return False
    command = [unshare, "--pid", "--fork", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _may_unshare(), reason="needs the right to make a name space")
def test_process_1_of_a_container_heeds_sigterm_while_models_load(tmp_path):
    """The kernel keeps from it every signal that it has no handler for."""
    before = ("unshare", "--pid", "--fork", "--kill-child")
    with loading(tmp_path / "models", tmp_path / "log", *before) as (unshare, *_):
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert unshare.wait(timeout=60) == 0


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has yet to take a signal that was sent to it."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if "Pnd:" in line]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_sighup_while_models_load_is_heeded_afterwards(tmp_path):
    """It may be about a key that was revoked, and the keys have been read already."""
    log = tmp_path / "log"
    with loading(tmp_path / "models", log) as (process, pipe, path):
        process.send_signal(signal.SIGHUP)
        until(lambda: not is_pending(process.pid, signal.SIGHUP))  # it has it, before it goes on
        (tmp_path / "whole").write_bytes(b"slow")
        (tmp_path / "whole").rename(path)  # what the reload reads
        pipe.write(b"slow")
        pipe.close()
        until(lambda: '"started"' in log.read_text())
        until(lambda: '"reloaded"' in log.read_text())
