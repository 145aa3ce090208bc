"""What only ONNX Runtime does: threads, which graph it takes, and what it refuses, by name."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.bundle import Bundle, Precision, latents, load_bundle
from service.engines import Engine, EngineError
from service.engines.onnx import OnnxEngine
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


def test_a_precision_that_cannot_be_is_refused_saying_which_can(tmp_path):
    graphs = ["model.float16.onnx", "model.bfloat16.onnx"]
    bundle = load_bundle(write_bundle(tmp_path, graphs=graphs))
    with pytest.raises(EngineError, match=r"cannot compute it in bfloat16; .* reads float32$"):
        OnnxEngine(bundle, precision="bfloat16", threads=1, concurrency=1)
