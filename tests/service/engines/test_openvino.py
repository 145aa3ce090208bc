"""OpenVINO as the embedded engine: the same images, and what cannot be served is one line."""

import asyncio

import numpy as np
import onnx
import pytest

from service.bundle import GoldenImage, latents, load_bundle
from service.engines import EngineError, openvino
from service.engines.openvino import OpenVinoEngine
from service.serving.supervision import Supervisor
from tests.bundles import A_WHILE, compute, republished, write_bundle, write_graph


def draw(bundle, seeds, labels, **options):
    """Open an engine, draw once and close it."""

    async def run():
        engine = OpenVinoEngine(bundle, threads=1, concurrency=1, **options)
        await engine.open()
        try:
            noise = latents(seeds, bundle.manifest.latent_shape)
            return await compute(engine, noise, np.array(labels, np.int64))
        finally:
            await engine.close()

    return asyncio.run(run())


def test_it_draws_the_golden_image_alone_and_in_a_batch(tmp_path):
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


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"channels": 3}, r"latents is float32 \[\?, 3, 8, 8\], .* \[N, 1, 8, 8\] with N free"),
        ({"classes": 0}, r"inputs and outputs are images, latents; .* class_labels"),
        ({"batch": 4}, r"latents is float32 \[4, 1, 8, 8\].* with N free"),
    ],
)
def test_a_graph_of_another_signature_is_refused_by_name(tmp_path, graph, message):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    write_graph(bundle.graph("model.onnx"), **({"classes": 3} | graph))
    with pytest.raises(EngineError, match=rf"1/model\.onnx: .*{message}"):
        draw(bundle, [0], [0])


@pytest.mark.usefixtures("bfloat16")
def test_in_bfloat16_it_draws_nearly_the_same_image_and_not_the_same(tmp_path):
    """And in float32 the same as ONNX Runtime (test_conformance), whatever the processor can."""
    bundle = load_bundle(write_bundle(tmp_path, "tiny", graphs=["model.bfloat16.onnx"]))
    exact = draw(bundle, range(8), [2] * 8).astype(int)
    difference = np.abs(draw(bundle, range(8), [2] * 8, precision="bfloat16") - exact)
    assert 0 < difference.max() <= bundle.tolerance("model.bfloat16.onnx").max_difference


def down_in_bfloat16(bundle):
    """Why a server of the bundle's bfloat16 would be down after its start; None: it is up."""

    async def scenario():
        engine = OpenVinoEngine(bundle, precision="bfloat16", threads=1, concurrency=1)
        supervisor = Supervisor(engine, bundle, seconds=5, on_change=lambda _: None)
        await supervisor.open()
        reason = supervisor.down
        await supervisor.close()
        return reason

    return asyncio.run(scenario())


@pytest.mark.usefixtures("bfloat16")
def test_the_canary_is_judged_by_the_bounds_of_the_graph_that_drew_it(tmp_path):
    """Bfloat16 is further off than float32 may be."""
    folder = write_bundle(tmp_path, graphs=["model.bfloat16.onnx"])

    assert down_in_bfloat16(load_bundle(folder)) is None
    assert "differ from the golden" in down_in_bfloat16(republished(folder, graphs={}))


@pytest.mark.usefixtures("bfloat16")
def test_the_canary_is_judged_by_the_mean_even_where_a_manifest_is_older_than_that(tmp_path):
    """Two levels everywhere are within bfloat16's bounds before they spoke of the mean."""
    folder = write_bundle(tmp_path, graphs=["model.bfloat16.onnx"])
    bundle = load_bundle(folder)
    golden = bundle.manifest.golden
    shifted = golden.images[0].pixels() ^ 2
    image = GoldenImage.from_pixels(shifted, class_label=2, seed=golden.images[0].seed)
    moved = golden.model_dump() | {"images": [image.model_dump()]}

    assert bundle.manifest.graphs["model.bfloat16.onnx"].bounds.max_mean_difference is None
    reason = down_in_bfloat16(republished(folder, golden=moved))
    assert "on average (allowed: 100.00%, 8, 1.25)" in reason


def test_bfloat16_is_refused_where_the_processor_has_none(tmp_path, monkeypatch):
    """OpenVINO would compute in float32 and not say so."""
    bundle = load_bundle(write_bundle(tmp_path, "tiny", graphs=["model.bfloat16.onnx"]))
    monkeypatch.setattr(openvino, "capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(EngineError, match=r"model\.bfloat16\.onnx: .* bfloat16 on this processor"):
        draw(bundle, [0], [0], precision="bfloat16")


@pytest.mark.slow
def test_a_batch_given_up_leaves_no_trace_in_later_ones_of_other_sizes(tmp_path):
    """OpenVINO's own cancel does: that is why it is not called."""
    bundle = load_bundle(write_bundle(tmp_path, "tiny", resolution=64))
    lengthen(bundle.graph("model.onnx"), 100)
    noise, labels = latents(range(32), (1, 64, 64)), np.arange(32) % 3

    async def scenario():
        engine = OpenVinoEngine(bundle, threads=1, concurrency=2)
        await engine.open()

        async def draw_twice(size):
            inputs = noise[:size], labels[:size]
            return await asyncio.gather(*(compute(engine, *inputs) for _ in range(2)))

        for size in (1, 3, 8):
            expected, _ = await draw_twice(size)
            given_up = asyncio.create_task(draw_twice(32))
            await asyncio.sleep(0.1)
            given_up.cancel()
            await asyncio.wait([given_up])
            for images in await draw_twice(size):
                assert np.array_equal(images, expected)
        await engine.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_restart_leaves_a_hanging_computation_behind(tmp_path):
    """One node that does not end cannot be cancelled, and it has the only stream."""
    bundle = load_bundle(write_bundle(tmp_path, "tiny", turns=10 * A_WHILE))
    noise = latents([7], (1, 8, 8))

    async def scenario():
        engine = OpenVinoEngine(bundle, threads=1, concurrency=1)
        await engine.open()
        expected = await compute(engine, noise, np.array([1]))
        hangs = asyncio.create_task(compute(engine, noise, np.array([0])))
        await asyncio.sleep(0.1)
        await engine.restart()
        assert np.array_equal(await compute(engine, noise, np.array([1])), expected)
        assert not hangs.done()
        await hangs
        await engine.close()

    asyncio.run(scenario())


def test_a_precision_that_the_bundle_lacks_is_refused_saying_which_it_has(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    with pytest.raises(EngineError, match=r"cannot compute it in bfloat16; .* it reads float32"):
        OpenVinoEngine(bundle, precision="bfloat16", threads=1, concurrency=1)


def lengthen(path, times):
    """Put so many more convolutions into a graph."""
    model = onnx.load(path)
    weight = np.random.default_rng(1).normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "more"))
    (at,) = (i for i, node in enumerate(model.graph.node) if node.output == ["h2"])
    names = ["h", *(f"more{i}" for i in range(times - 1)), "h2"]
    model.graph.node[at].output[0] = "h"
    for i in range(times):
        node = onnx.helper.make_node("Conv", [names[i], "more"], [names[i + 1]], pads=[1, 1, 1, 1])
        model.graph.node.insert(at + 1 + i, node)
    onnx.save(model, path)
