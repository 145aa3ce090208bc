"""The embedded engine on real graphs: same bytes in any batch, and wrong graphs refused."""

import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.bundle import Bundle, Manifest, latents, load_bundle, sha256_file, write_manifest
from service.engines import Engine, EngineError
from service.engines.onnx import OnnxEngine
from tests.bundles import compute, write_bundle, write_graph


@asynccontextmanager
async def opened(bundle: Bundle, threads: int = 1):
    engine: Engine = OnnxEngine(bundle, threads=threads, concurrency=2)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()


def generate(bundle: Bundle, noise, labels, threads: int = 1):
    async def scenario():
        async with opened(bundle, threads) as engine:
            return await compute(engine, noise, labels)

    return asyncio.run(scenario())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_bytes_in_a_batch_of_any_size(tmp_path, channels, threads):
    bundle = load_bundle(write_bundle(tmp_path, resolution=16, channels=channels))
    noise = latents(range(33), bundle.manifest.latent_shape)
    labels = np.arange(33, dtype=np.int64) % 3

    async def scenario():
        async with opened(bundle, threads) as engine:
            alone = [await compute(engine, noise[i : i + 1], labels[i : i + 1]) for i in range(33)]
            for size in (2, 3, 8, 17, 33):
                together = await compute(engine, noise[:size], labels[:size])
                assert together.dtype == np.uint8
                assert together.shape == (size, 16, 16, channels)
                assert np.array_equal(together, np.concatenate(alone[:size]))

    asyncio.run(scenario())


def test_the_class_and_the_noise_change_the_image(models):
    bundle = load_bundle(models / "tiny")
    noise = latents([1, 1, 2], bundle.manifest.latent_shape)
    images = generate(bundle, noise, np.array([0, 1, 0]))
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_an_unconditional_graph_takes_no_labels(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, classes=[]))
    noise = latents([1], bundle.manifest.latent_shape)
    assert generate(bundle, noise, None).shape == (1, 8, 8, 1)


def test_it_is_ready_between_open_and_close(models):
    async def scenario():
        bundle = load_bundle(models / "tiny")
        engine = OnnxEngine(bundle, threads=1, concurrency=1)
        assert not await engine.ready()
        with pytest.raises(EngineError, match="not open"):
            await compute(engine, latents([0], (1, 8, 8)), np.array([0]))
        await engine.open()
        assert await engine.ready()
        await engine.close()
        assert not await engine.ready()
        await engine.close()

    asyncio.run(scenario())


def test_a_batch_that_cannot_be_computed_is_an_engine_error_and_the_next_one_works(models):
    async def scenario():
        async with opened(load_bundle(models / "tiny")) as engine:
            noise = latents([0], (1, 8, 8))
            with pytest.raises(EngineError, match=r"^tiny: ") as caught:
                await compute(engine, noise, np.array([99]))
            assert "\n" not in str(caught.value)
            assert (await compute(engine, noise, np.array([0]))).shape == (1, 8, 8, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"resolution": 16}, r"latents is tensor\(float\) \[N, 1, 16, 16\].*\[N, 1, 8, 8\]"),
        ({"channels": 3}, r"latents is tensor\(float\) \[N, 3, 8, 8\]"),
        ({"classes": 0}, r"inputs and outputs are images, latents; .* class_labels"),
        ({"batch": 4}, r"latents is tensor\(float\) \[4, 1, 8, 8\].* with N free"),
    ],
)
def test_a_graph_of_another_signature_is_refused_by_name(models, graph, message):
    path = models / "tiny" / "1" / "model.onnx"
    write_graph(path, **({"classes": 3} | graph))
    with pytest.raises(EngineError, match=rf"1/model\.onnx: .*{message}"):
        generate(republished(models / "tiny"), None, None)


def test_a_file_that_is_no_graph_is_refused_by_name(models):
    (models / "tiny" / "1" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"1/model\.onnx: ONNX Runtime cannot") as caught:
        generate(republished(models / "tiny"), None, None)
    assert "\n" not in str(caught.value)


def republished(folder) -> Bundle:
    """The bundle again, with digests that fit its changed graph."""
    facts = json.loads((folder / "manifest.json").read_text())
    facts["files"]["1/model.onnx"] = sha256_file(folder / "1" / "model.onnx")
    write_manifest(folder, Manifest(**facts))
    return load_bundle(folder)
