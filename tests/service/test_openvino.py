"""OpenVINO as the embedded engine: the same pictures, and what cannot be served is one line."""

import asyncio

import numpy as np
import pytest

from service.bundle import latents, load_bundle
from service.engines import EngineError, Terms
from service.engines.openvino import OpenVinoEngine
from tests.bundles import write_bundle


def draw(bundle, seeds, labels, **options):
    """Open an engine, draw once and close it."""

    async def run():
        engine = OpenVinoEngine(bundle, threads=1, concurrency=1, **options)
        await engine.open()
        try:
            noise = latents(seeds, bundle.manifest.latent_shape)
            inputs = (noise, np.array(labels, np.int64))
            return await engine.generate(lambda: inputs, lambda images: images, Terms())
        finally:
            await engine.close()

    return asyncio.run(run())


def test_it_draws_the_golden_picture_alone_and_in_a_batch(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    golden = bundle.manifest.golden
    reference = golden.images[0]
    (alone,) = draw(bundle, [reference.seed], [reference.class_label])
    assert golden.mismatch(reference, alone) is None
    batch = draw(bundle, [reference.seed, 1, 2], [reference.class_label, 0, 1])
    assert golden.mismatch(reference, batch[0]) is None


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"a text", b""])
def test_a_file_that_is_no_graph_is_refused_in_one_line_by_name(tmp_path, content):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    path = bundle.graph("model.onnx")
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"1/model\.onnx: ") as refused:
        draw(bundle, [0], [0])
    assert "\n" not in str(refused.value)


def test_a_truncated_graph_is_refused_in_one_line_by_name(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    path = bundle.graph("model.onnx")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EngineError, match=r"1/model\.onnx: ") as refused:
        draw(bundle, [0], [0])
    assert "\n" not in str(refused.value)


def test_a_graph_of_another_shape_is_refused_in_one_line_by_name(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    other = load_bundle(write_bundle(tmp_path / "other", "tiny", resolution=16))
    bundle.graph("model.onnx").write_bytes(other.graph("model.onnx").read_bytes())
    with pytest.raises(EngineError, match=r"1/model\.onnx: latents is float32 \[") as refused:
        draw(bundle, [0], [0])
    assert "\n" not in str(refused.value)


def test_a_precision_that_the_bundle_lacks_is_refused_saying_which_it_has(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    with pytest.raises(EngineError, match=r"cannot compute it in int8; .* it reads float32"):
        OpenVinoEngine(bundle, precision="int8", threads=1, concurrency=1)
