"""Engines that break or hang for real: requests are refused at once, the engine restarts."""

import asyncio

import numpy as np
import pytest

from service.app import create_app
from service.bundle import latents, load_bundle
from service.engines import EngineError
from service.engines.onnx import OnnxEngine
from service.serving.exceptions import EngineDownError
from service.serving.supervision import Supervisor
from tests.bundles import FOR_EVER, compute, write_bundle
from tests.service.client import Client
from tests.service.waiting import happens, until

HANGS, DRAWS = 0, 2  # classes of the bundle that hangs


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(write_bundle(tmp_path / "hanging", turns=FOR_EVER))


class Watched:
    """A supervised engine, and every change it reported."""

    def __init__(self, bundle, *, seconds=0.3, concurrency=1):
        self.changes = []
        self.engine = OnnxEngine(bundle, threads=1, concurrency=concurrency)
        self.supervisor = Supervisor(
            self.engine, bundle, seconds=seconds, on_change=self.changes.append
        )

    async def __aenter__(self):
        await self.supervisor.open()
        return self

    async def __aexit__(self, *_):
        await self.supervisor.close()

    async def draw(self, label):
        return await compute(self.supervisor, latents([7], (1, 8, 8)), np.array([label]))

    async def until_up(self):
        await happens(lambda: not self.supervisor.down)


def test_a_hanging_engine_is_down_at_once_and_works_again_by_itself(bundle):
    async def scenario():
        async with Watched(bundle) as watched:
            expected = await watched.draw(DRAWS)
            with pytest.raises(EngineError, match="no answer in"):
                await watched.draw(HANGS)
            # At once: the engine, which mends in the loop's later turns, was not waited for.
            with pytest.raises(EngineDownError):
                watched.draw(DRAWS).send(None)
            with pytest.raises(EngineDownError):
                watched.supervisor.check().send(None)
            await watched.until_up()
            assert np.array_equal(await watched.draw(DRAWS), expected)
            await watched.supervisor.check()
            assert watched.changes == [True, False, True]

    asyncio.run(scenario())


def test_a_batch_that_fails_does_not_take_a_working_engine_down(bundle):
    async def scenario():
        async with Watched(bundle) as watched:
            with pytest.raises(EngineError):
                await watched.draw(99)  # Gather refuses the index
            await watched.draw(DRAWS)
            await asyncio.sleep(0.05)
            assert watched.changes == [True]

    asyncio.run(scenario())


def test_a_hang_while_a_failure_is_looked_into_is_mended_too(bundle):
    """The canary may succeed just after another batch took the engine down."""

    async def scenario():
        async with Watched(bundle, seconds=1, concurrency=2) as watched:
            first = asyncio.create_task(watched.draw(HANGS))
            await asyncio.sleep(0.3)
            fails = asyncio.create_task(watched.draw(99))
            second = asyncio.create_task(watched.draw(HANGS))  # before the canary in the queue
            await asyncio.gather(first, fails, second, return_exceptions=True)
            await watched.until_up()
            assert (await watched.draw(DRAWS)).shape == (1, 8, 8, 1)

    asyncio.run(scenario())


@pytest.mark.slow
def test_what_a_restart_left_behind_does_not_take_the_engine_down_again(bundle):
    async def scenario():
        async with Watched(bundle, seconds=2, concurrency=2) as watched:
            first = asyncio.create_task(watched.draw(HANGS))
            await asyncio.sleep(1.3)  # the restart, a second after 2, does not wait for 3.3
            second = asyncio.create_task(watched.draw(HANGS))
            await asyncio.gather(first, second, return_exceptions=True)
            await watched.until_up()
            await watched.draw(DRAWS)
            assert watched.changes == [True, False, True]

    asyncio.run(scenario())


def test_an_engine_that_cannot_even_restart_is_tried_again(bundle, monkeypatch):
    tried = []

    async def unable(_):
        tried.append(1)
        if len(tried) < 3:
            raise RuntimeError("can't start new thread")

    async def scenario():
        async with Watched(bundle) as watched:
            restart = OnnxEngine.restart

            async def sometimes(engine):
                await unable(engine)
                await restart(engine)

            monkeypatch.setattr(OnnxEngine, "restart", sometimes)
            with pytest.raises(EngineError):
                await watched.draw(HANGS)
            await watched.until_up()
            await watched.draw(DRAWS)

    asyncio.run(scenario())
    assert len(tried) == 3


def test_mending_does_not_need_the_file_any_more(bundle):
    async def scenario():
        async with Watched(bundle) as watched:
            expected = await watched.draw(DRAWS)
            bundle.graph("model.onnx").write_bytes(b"what a deployment put there meanwhile")
            with pytest.raises(EngineError):
                await watched.draw(HANGS)
            await watched.until_up()
            assert np.array_equal(await watched.draw(DRAWS), expected)

    asyncio.run(scenario())


def test_a_wrong_canary_takes_a_running_engine_down(bundle, monkeypatch):
    async def scenario():
        async with Watched(bundle) as watched:
            monkeypatch.setattr(type(bundle.manifest.golden), "mismatch", lambda *_: "another one")
            with pytest.raises(EngineError, match="another one"):
                await watched.supervisor.check()
            with pytest.raises(EngineDownError):
                await watched.draw(DRAWS)

    asyncio.run(scenario())


def test_an_engine_that_stays_broken_is_tried_until_it_works(bundle, monkeypatch):
    broken, attempts = True, []
    generate = OnnxEngine.generate

    async def breakable(engine, prepare, finish, *deadline):
        attempts.append(1)
        if broken:
            raise EngineError("out of order")
        return await generate(engine, prepare, finish, *deadline)

    monkeypatch.setattr(OnnxEngine, "generate", breakable)

    async def scenario():
        nonlocal broken
        broken = False
        async with Watched(bundle) as watched:
            broken = True
            with pytest.raises(EngineError, match="out of order"):
                await watched.draw(DRAWS)
            await happens(lambda: watched.supervisor.down)
            tried = len(attempts)
            await happens(lambda: len(attempts) >= tried + 3)
            assert watched.supervisor.down == "out of order"
            broken = False
            await watched.until_up()
            await watched.draw(DRAWS)
            assert watched.changes == [True, False, True]

    asyncio.run(scenario())


def test_over_http_a_hang_is_503_with_retry_after_red_readiness_and_then_over(
    bundle, settings, monkeypatch
):
    restart = OnnxEngine.restart

    looked = asyncio.Event()

    async def slowly(engine):
        await looked.wait()  # till it was seen to be down
        await restart(engine)

    monkeypatch.setattr(OnnxEngine, "restart", slowly)
    models = bundle.folder.parent
    hanging = settings.model_copy(
        update={"models": models, "engine_seconds": 0.5, "concurrency": 1, "max_batch_size": 1}
    )
    with Client(create_app(hanging)) as client:

        async def scenario():
            first = asyncio.create_task(client.http.post("/generate", json={"class_label": HANGS}))
            queued = asyncio.create_task(client.http.post("/generate", json={"seed": DRAWS}))
            answers = await asyncio.gather(first, queued)
            refused = await client.http.post("/generate", json={"seed": DRAWS})
            return [*answers, refused, await client.http.get("/readyz")]

        for answer in client.run(scenario()):
            assert answer.status_code == 503
            if answer.request.method == "POST":
                assert int(answer.headers["retry-after"]) >= 1
        looked.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.generate({"seed": DRAWS}).status_code == 200
        registry = client.app.state.metrics.registry
        assert registry.get_sample_value("sid_engine_up", {"model": "tiny", "device": "cpu:0"}) == 1
        refusals = {"model": "tiny", "reason": "engine_down", "priority": "interactive"}
        assert registry.get_sample_value("sid_rejections_total", refusals) == 1
