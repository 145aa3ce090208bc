"""What only the embedded engine does: threads, and graphs of another signature refused."""

import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.bundle import Bundle, Manifest, latents, load_bundle, sha256_file, write_manifest
from service.engines import Engine, EngineError
from service.engines.onnx import OnnxEngine
from tests.bundles import compute, write_graph


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
