"""What only ONNX Runtime does: threads, which graph it takes, and what it refuses, by name."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.bundle import Bundle, GoldenImage, Precision, latents, load_bundle
from service.engines import Engine, EngineError
from service.engines.onnx import CudaEngine, OnnxEngine
from service.serving.supervision import Supervisor
from tests.bundles import compute, republished, write_bundle, write_graph


@asynccontextmanager
async def opened(bundle: Bundle, threads: int = 1, precision: Precision = "float32"):
    engine: Engine = OnnxEngine(bundle, precision=precision, threads=threads, concurrency=2)
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


def test_several_threads_draw_the_same_bytes_as_one(models):
    bundle = load_bundle(models / "tiny")
    noise, labels = latents(range(17), (1, 8, 8)), np.arange(17, dtype=np.int64) % 3
    together = generate(bundle, noise, labels, threads=2)
    assert np.array_equal(together, generate(bundle, noise, labels))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"resolution": 16}, r"latents is float32 \[N, 1, 16, 16\].*\[N, 1, 8, 8\]"),
        ({"channels": 3}, r"latents is float32 \[N, 3, 8, 8\]"),
        ({"classes": 0}, r"inputs and outputs are images, latents; .* class_labels"),
        ({"batch": 4}, r"latents is float32 \[4, 1, 8, 8\].* with N free"),
    ],
)
def test_a_graph_of_another_signature_is_refused_by_name(models, graph, message):
    path = models / "tiny" / "1" / "model.onnx"
    write_graph(path, **({"classes": 3} | graph))
    with pytest.raises(EngineError, match=rf"1/model\.onnx: .*{message}"):
        generate(republished(models / "tiny"), None, None)


@pytest.mark.parametrize("content", [b"not a graph", b"\x89PNG\r\n\x1a\n", b"", "half"])
def test_a_file_that_is_no_graph_is_refused_by_name(models, content):
    path = models / "tiny" / "1" / "model.onnx"
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half if content == "half" else content)
    with pytest.raises(EngineError, match=r"1/model\.onnx: ONNX Runtime cannot") as caught:
        generate(republished(models / "tiny"), None, None)
    assert "\n" not in str(caught.value)


def test_it_takes_the_graph_that_is_written_for_processors_where_there_is_one(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, graphs=["model.cpu.onnx"]))
    engine = OnnxEngine(bundle, threads=1, concurrency=1)
    assert (engine.filename, engine.precision) == ("model.cpu.onnx", "float32")
    # Which a GPU has no use for.
    assert CudaEngine(bundle, threads=1, concurrency=1).filename == "model.onnx"


def test_in_int8_it_draws_nearly_the_same_picture_and_not_the_same(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, graphs=["model.int8.onnx"]))
    noise, labels = latents(range(8), (1, 8, 8)), np.arange(8) % 3

    async def scenario():
        async with (
            opened(bundle) as exact,
            opened(bundle, precision="int8") as engine,
        ):
            assert engine.filename == "model.int8.onnx"
            expected = (await compute(exact, noise, labels)).astype(int)
            difference = np.abs(await compute(engine, noise, labels) - expected)
            assert 0 < difference.max() <= bundle.bounds(engine.filename).max_difference

    asyncio.run(scenario())


def down_in_int8(bundle):
    """Why a server of the bundle's int8 would be down after its start; None: it is up."""

    async def scenario():
        engine = OnnxEngine(bundle, precision="int8", threads=1, concurrency=1)
        supervisor = Supervisor(engine, bundle, seconds=5, on_change=lambda _: None)
        await supervisor.open()
        reason = supervisor.down
        await supervisor.close()
        return reason

    return asyncio.run(scenario())


def test_the_canary_is_judged_by_the_bounds_of_the_graph_that_drew_it(tmp_path):
    """Int8 is further off than float32 may be; and a broken graph of int8 further than int8 may."""
    folder = write_bundle(tmp_path, graphs=["model.int8.onnx"])

    assert down_in_int8(load_bundle(folder)) is None
    assert "differ from the golden" in down_in_int8(republished(folder, graphs={}))


def test_the_canary_is_judged_by_the_mean_even_where_a_manifest_is_older_than_that(tmp_path):
    """Two levels everywhere are within what int8's bounds said before they spoke of the mean."""
    folder = write_bundle(tmp_path, graphs=["model.int8.onnx"])
    bundle = load_bundle(folder)
    golden = bundle.manifest.golden
    shifted = golden.images[0].pixels() ^ 2
    image = GoldenImage.from_pixels(shifted, class_label=2, seed=golden.images[0].seed)
    moved = golden.model_dump() | {"images": [image.model_dump()]}

    assert bundle.manifest.graphs["model.int8.onnx"].bounds.max_mean_difference is None
    reason = down_in_int8(republished(folder, golden=moved))
    assert "on average (allowed: 100.00%, 8, 1.5)" in reason


@pytest.mark.parametrize(
    ("engine", "precision", "has"),
    [
        (OnnxEngine, "bfloat16", "float32, int8"),
        (CudaEngine, "int8", "float32, float16"),
        (CudaEngine, "bfloat16", "float32, float16"),
    ],
)
def test_a_precision_that_cannot_be_is_refused_saying_which_can(tmp_path, engine, precision, has):
    graphs = ["model.int8.onnx", "model.float16.onnx", "model.bfloat16.onnx"]
    bundle = load_bundle(write_bundle(tmp_path, graphs=graphs))
    with pytest.raises(EngineError, match=f"cannot compute it in {precision}; .* reads {has}$"):
        engine(bundle, precision=precision, threads=1, concurrency=1)


def test_cuda_is_refused_where_this_onnx_runtime_has_none(models):
    engine = CudaEngine(load_bundle(models / "tiny"), threads=1, concurrency=1)
    with pytest.raises(EngineError, match=r"1/model\.onnx: .* no CUDAExecutionProvider.*gpu"):
        asyncio.run(opening(engine))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_is_refused_where_onnx_runtime_silently_computes_without_it(models, monkeypatch):
    monkeypatch.setattr(CudaEngine, "installed", lambda _: True)
    engine = CudaEngine(load_bundle(models / "tiny"), threads=1, concurrency=1)
    with pytest.raises(EngineError, match=r"1/model\.onnx: .* fell back to CPUExecutionProvider"):
        asyncio.run(opening(engine))


async def opening(engine):
    try:
        await engine.open()
    finally:
        await engine.close()
