"""Several models in one server: neither load nor trouble of one takes the other out."""

import asyncio
import time

import httpx
import pytest

from tests.bundles import FOR_EVER, write_bundle
from tests.service.test_process import serving
from tests.service.waiting import happens, metrics_show

pytestmark = pytest.mark.slow

CALM = {"model": "calm", "class_label": 1, "seed": 7}


async def seconds(http: httpx.AsyncClient, count: int = 15) -> float:
    """The median time of a request to the calm model."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        answer = await http.post("/generate", json=CALM)
        taken.append(time.perf_counter() - started)
        assert answer.status_code == 200
    return sorted(taken)[count // 2]


def test_a_model_that_hangs_holds_up_no_other(tmp_path):
    write_bundle(tmp_path / "models", "calm")
    write_bundle(tmp_path / "models", "hung", turns=FOR_EVER)
    settings = {"SID_CONCURRENCY": "2", "SID_MAX_BATCH_SIZE": "1"}
    with serving(tmp_path / "models", log=tmp_path / "log", **settings) as (_, url):

        async def scenario() -> set[int]:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                hung = {"model": "hung", "class_label": 0}
                stuck = [asyncio.create_task(http.post("/generate", json=hung)) for _ in range(20)]
                await metrics_show(http, r'sid_queue_depth\{model="hung",.* 18')
                assert not any(task.done() for task in stuck)
                answers = [await http.post("/generate", json=CALM) for _ in range(10)]
                for task in stuck:
                    task.cancel()
                return {answer.status_code for answer in answers}

        assert asyncio.run(scenario()) == {200}


def test_a_flood_on_one_model_leaves_the_other_its_share(tmp_path):
    write_bundle(tmp_path / "models", "calm")
    write_bundle(tmp_path / "models", "busy", resolution=128)
    with serving(tmp_path / "models", SID_LOG_LEVEL="error", log=tmp_path / "log") as (_, url):

        async def scenario() -> tuple[float, float]:
            limits = httpx.Limits(max_connections=40)
            async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
                flooding, waits = True, []

                async def flood(seed: int) -> None:
                    while flooding:
                        started = time.perf_counter()
                        body = {"model": "busy", "seed": seed, "n": 16}
                        assert (await http.post("/generate", json=body)).status_code == 200
                        waits.append(time.perf_counter() - started)

                floods = [asyncio.create_task(flood(seed)) for seed in range(16)]
                await happens(lambda: len(waits) >= len(floods))
                calm = await seconds(http)
                flooding = False
                await asyncio.gather(*floods)
                return calm, sorted(waits)[len(waits) // 2]

        calm, busy = asyncio.run(scenario())
    # In the same queue it would wait as long as those before it.
    assert calm < busy / 3, (calm, busy)
