"""What every engine does alike, on real graphs: the embedded ones, and the real Triton server."""

import asyncio
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.bundle import Bundle, latents
from service.engines import Engine, EngineError, Prepared
from service.engines.onnx import OnnxEngine
from service.engines.openvino import OpenVinoEngine
from service.engines.triton import TritonEngine
from service.serving.supervision import Supervisor
from tests.bundles import compute, graph_inputs
from tests.service.engines.numpy_engine import NumpyEngine
from tests.service.engines.padded_engine import PaddedEngine
from tests.service.triton import Repository

CONCURRENCY = 2


TRITON = pytest.param("triton", marks=pytest.mark.slow)


# numpy stands for the next engine, which is not written yet; padded is the one for GPUs.
@pytest.fixture(params=["onnxruntime", "openvino", "padded", "numpy", TRITON])
def make(request):
    """Makes an engine for a bundle of `repository`."""
    embedded = {
        "onnxruntime": OnnxEngine,
        "openvino": OpenVinoEngine,
        "padded": PaddedEngine,
        "numpy": NumpyEngine,
    }

    def in_process(bundle):
        return embedded[request.param](bundle, threads=1, concurrency=CONCURRENCY)

    def triton(bundle):
        server = request.getfixturevalue("triton")
        return TritonEngine(
            bundle, addresses=[server.address], max_batch_size=32, concurrency=CONCURRENCY
        )

    return in_process if request.param in embedded else triton


@asynccontextmanager
async def opened(engine: Engine):
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()


def noise(bundle: Bundle, count: int):
    return latents(range(count), bundle.manifest.latent_shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_an_image_is_the_same_bytes_in_a_batch_of_any_size(repository: Repository, make, name):
    bundle = repository.bundle(name)
    manifest = bundle.manifest
    labels = np.arange(32, dtype=np.int64) % 3
    z = noise(bundle, 32)

    async def scenario():
        async with opened(make(bundle)) as engine:
            alone = [await compute(engine, z[i : i + 1], labels[i : i + 1]) for i in range(32)]
            for size in (2, 3, 8, 17, 32):
                together = await compute(engine, z[:size], labels[:size])
                assert together.dtype == np.uint8
                assert together.shape == (size, *manifest.image_shape)
                assert np.array_equal(together, np.concatenate(alone[:size]))

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["grey", "colour", "plain"])
def test_all_engines_draw_the_very_same_pixels(repository: Repository, make, name):
    bundle = repository.bundle(name)
    labels = np.arange(8, dtype=np.int64) % 3 if bundle.manifest.classes else None

    async def scenario():
        reference = OnnxEngine(bundle, threads=1, concurrency=1)
        async with opened(make(bundle)) as engine, opened(reference):
            expected = await compute(reference, noise(bundle, 8), labels)
            assert np.array_equal(await compute(engine, noise(bundle, 8), labels), expected)
            golden = bundle.manifest.golden
            z = latents([golden.images[0].seed], bundle.manifest.latent_shape)
            label = None if labels is None else np.array([golden.images[0].class_label])
            (image,) = await compute(engine, z, label)
            assert golden.mismatch(golden.images[0], image) is None

    asyncio.run(scenario())


def test_batches_under_way_at_the_same_time_do_not_mix(repository: Repository, make):
    bundle = repository.bundle("grey")
    z, labels = noise(bundle, 24), np.arange(24, dtype=np.int64) % 3

    async def scenario():
        async with opened(make(bundle)) as engine:
            expected = await compute(engine, z, labels)
            parts = [slice(first, first + 3) for first in range(0, 24, 3)]
            answers = await asyncio.gather(*(compute(engine, z[p], labels[p]) for p in parts))
            assert np.array_equal(np.concatenate(answers), expected)

    asyncio.run(scenario())


def test_the_class_and_the_noise_change_the_image(repository: Repository, make):
    bundle = repository.bundle("grey")

    async def scenario():
        async with opened(make(bundle)) as engine:
            z = latents([1, 1, 2], bundle.manifest.latent_shape)
            images = await compute(engine, z, np.array([0, 1, 0]))
            assert not np.array_equal(images[0], images[1])
            assert not np.array_equal(images[0], images[2])

    asyncio.run(scenario())


def test_further_inputs_are_fed_by_name_each_row_its_own(repository: Repository, make):
    """One noise and one class; a label and a vector, and latents of another shape than images."""
    bundle = repository.bundle("styled")
    z = np.repeat(latents([1], bundle.manifest.latent_shape), 5, axis=0)
    labels = np.zeros(5, np.int64)
    style = np.array([0, 1, 2, 2, 4])
    mix = np.float32([[0, 1], [0, 1], [0, 1], [1, 0], [0.5, 0.5]])

    async def scenario():
        reference = OnnxEngine(bundle, threads=1, concurrency=1)
        async with opened(make(bundle)) as engine, opened(reference):
            images = await compute(engine, z, labels, style=style, mix=mix)
            assert images.shape == (5, 16, 16, 1)
            assert len({image.tobytes() for image in images}) == 5
            assert np.array_equal(images, await compute(reference, z, labels, style=style, mix=mix))
            for i in range(5):
                row = slice(i, i + 1)
                alone = await compute(engine, z[row], labels[row], style=style[row], mix=mix[row])
                assert np.array_equal(alone[0], images[i])

    asyncio.run(scenario())


def test_it_works_between_open_and_close_and_after_a_restart(repository: Repository, make):
    async def scenario():
        bundle = repository.bundle("grey")
        engine = make(bundle)
        z, labels = noise(bundle, 1), np.array([0])
        with pytest.raises(EngineError, match="not open"):
            await engine.check()
        with pytest.raises(EngineError, match="not open"):
            await compute(engine, z, labels)
        await engine.open()
        await engine.check()
        before = await compute(engine, z, labels)
        assert engine.version
        await engine.restart()
        await engine.check()
        assert np.array_equal(await compute(engine, z, labels), before)
        await engine.close()
        with pytest.raises(EngineError, match="not open"):
            await engine.check()
        await engine.close()

    asyncio.run(scenario())


def test_a_batch_that_cannot_be_computed_is_an_engine_error_and_the_next_one_works(
    repository: Repository, make
):
    async def scenario():
        bundle = repository.bundle("grey")
        async with opened(make(bundle)) as engine:
            with pytest.raises(EngineError, match=r"^grey: .") as caught:
                await compute(engine, noise(bundle, 3), np.array([0, 1]))
            assert "\n" not in str(caught.value)
            assert (await compute(engine, noise(bundle, 1), np.array([0]))).shape == (1, 8, 8, 1)

    asyncio.run(scenario())


# OpenVINO takes any index, and draws something: the manifest is asked before (`resolve_jobs`).
@pytest.mark.parametrize("make", ["onnxruntime", "padded", TRITON], indirect=True)
def test_a_node_that_fails_is_named(repository: Repository, make):
    async def scenario():
        bundle = repository.bundle("grey")
        async with opened(make(bundle)) as engine:
            with pytest.raises(EngineError, match=r"^grey: .*Gather") as caught:
                await compute(engine, noise(bundle, 1), np.array([99]))
            assert "\n" not in str(caught.value)

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", ["prepare", "finish"])
def test_what_comes_before_and_after_the_graph_may_fail_as_itself(
    repository: Repository, make, broken
):
    bundle = repository.bundle("grey")

    def prepare():
        if broken == "prepare":
            raise ZeroDivisionError
        return Prepared(graph_inputs(noise(bundle, 1), np.array([0])))

    def finish(_):
        raise ZeroDivisionError

    async def scenario():
        async with opened(make(bundle)) as engine:
            with pytest.raises(ZeroDivisionError):
                await engine.generate(prepare, finish)
            await compute(engine, noise(bundle, 1), np.array([0]))

    asyncio.run(scenario())


def test_a_cancelled_batch_leaves_the_others_alone(repository: Repository, make):
    async def scenario():
        bundle = repository.bundle("grey")
        z, labels = noise(bundle, 16), np.zeros(16, np.int64)
        async with opened(make(bundle)) as engine:
            expected = await compute(engine, z, labels)
            calls = [asyncio.create_task(compute(engine, z, labels)) for _ in range(6)]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            for number, images in enumerate(ended):
                if number % 2:
                    assert np.array_equal(images, expected)
                else:
                    assert isinstance(images, asyncio.CancelledError)

    asyncio.run(scenario())


def test_neither_prepare_nor_finish_runs_on_the_event_loop(repository: Repository, make):
    bundle = repository.bundle("grey")
    loop_thread = threading.get_ident()
    seen = []

    def prepare():
        seen.append(threading.get_ident())
        return Prepared(graph_inputs(noise(bundle, 1), np.array([0])))

    async def scenario():
        async with opened(make(bundle)) as engine:
            await engine.generate(prepare, lambda _: seen.append(threading.get_ident()))

    asyncio.run(scenario())
    assert len(seen) == 2
    assert loop_thread not in seen


def test_a_bundle_of_another_graph_is_found_out_by_its_canary(repository: Repository, make):
    """Its pixels are compared: nothing else would see a wrong file of the right shape."""
    golden = repository.bundle("grey").manifest.golden
    wrong = golden.model_copy(update={"images": [golden.images[0].model_copy(update={"seed": 8})]})
    bundle = repository.bundle("grey")
    bundle = Bundle(bundle.manifest.model_copy(update={"golden": wrong}), bundle.folder, "0")

    async def scenario():
        supervisor = Supervisor(make(bundle), bundle, seconds=5, on_change=lambda _: None)
        await supervisor.open()
        assert "differ from the golden image" in supervisor.down
        await supervisor.close()

    asyncio.run(scenario())
