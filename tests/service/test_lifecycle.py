"""The end of the process: what was accepted is answered, what hangs holds nobody, exit status 0."""

import asyncio
import json
import re
import signal
import time

import httpx

from tests.bundles import FOR_EVER, write_bundle
from tests.service.test_process import serving


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
                while True:
                    metrics = (await http.get("/metrics")).text
                    if float(re.search(r"^sid_queue_depth\{.*\} (\S+)", metrics, re.M)[1]) > 50:
                        break
                process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*posts)

        answers = asyncio.run(scenario())
        assert process.wait(timeout=20) == 0
    assert {answer.status_code for answer in answers} == {200}
    for seed, answer in enumerate(answers):
        assert answer.json()["images"][0]["seed"] == seed


def test_a_batch_that_hangs_holds_the_process_for_its_grace_only(tmp_path):
    grace = 1
    write_bundle(tmp_path / "models", turns=FOR_EVER)
    log = tmp_path / "log"
    settings = {"SID_GRACE_SECONDS": str(grace), "SID_CONCURRENCY": "1"}
    with serving(tmp_path / "models", log=log, **settings) as (process, url):

        async def scenario() -> tuple[list[httpx.Response], float]:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                hangs = asyncio.create_task(http.post("/generate", json={"class_label": 0}))
                await asyncio.sleep(0.2)
                waits = asyncio.create_task(http.post("/generate", json={"class_label": 1}))
                await asyncio.sleep(0.2)
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(hangs, waits, return_exceptions=True)
                return answers, started

        answers, started = asyncio.run(scenario())
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - started < grace + 3
    for answer in answers:
        assert isinstance(answer, httpx.Response), f"cut off: {answer!r}"
        assert answer.status_code == 503
        assert json.loads(answer.content)["type"].endswith(":draining")
