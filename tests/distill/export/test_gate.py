"""The gate: an engine's noise passes, what eyes would see does not, in every precision."""

import json
from pathlib import Path

import numpy as np
import pytest

import distill
from distill.errors import UserError
from distill.export import gate
from distill.export.gate import BOUNDS, draw_truth, judge
from distill.export.one_step import PixelGenerator
from distill.export.publish import load_generator
from service.bundle import FILENAMES, Graph, load_bundle

SHIPPED = Path(distill.__file__).parents[1] / "models" / "fashion"


@pytest.fixture(scope="module")
def truth():
    """The shipped model's first 64 pictures; without the distance, which takes 2,000."""
    file = Path(distill.__file__).parent / "pretrained" / "fashion-generator.safetensors"
    generator, facts = load_generator(file)
    return draw_truth(PixelGenerator(generator, facts["sigma_init"]), None)


@pytest.mark.slow
@pytest.mark.parametrize("name", load_bundle(SHIPPED).manifest.graphs)
def test_the_shipped_graphs_pass_and_their_pictures_keep_their_bounds_one_by_one(truth, name):
    bundle = load_bundle(SHIPPED)
    graph, pixels = judge(bundle.graph(name), truth)
    assert graph.bounds == bundle.manifest.graphs[name].bounds == BOUNDS[graph.precision]
    golden = bundle.manifest.golden
    for reference, picture in zip(golden.images, pixels, strict=False):
        assert golden.mismatch(reference, picture, graph.bounds) is None


def blurred(pixels):
    """By the mean of 3x3 pixels."""
    edges = np.pad(pixels.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = pixels.shape[1:3]
    moved = [edges[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.mean(moved, axis=0).round()


def shifted(levels):
    return lambda pixels: pixels.astype(int) + levels


def half_of_the_pixels(levels):
    def spoil(pixels):
        sign = np.where(pixels > 127, -1, 1)
        chosen = np.indices(pixels.shape)[1:3].sum(0) % 2
        return pixels + sign * chosen * levels

    return spoil


def one_in_ten(spoil):
    """Of the pictures, as when a class is broken."""

    def spoil_some(pixels):
        spoilt = pixels.astype(float)
        spoilt[::10] = spoil(pixels[::10])
        return spoilt

    return spoil_some


DEFECTS = {
    "blurred": blurred,
    "a class blurred": one_in_ten(blurred),
    "brighter by 2": shifted(2),
    "darker by 2": shifted(-2),
    "64 levels on half of the pixels": half_of_the_pixels(64),
    "4 levels on half of the pixels": half_of_the_pixels(4),
    "less contrast": lambda pixels: 128 + (pixels - 128.0) * 0.97,
    "moved by a pixel": lambda pixels: np.roll(pixels, 1, axis=2),
    "other pictures": lambda pixels: np.roll(pixels, 1, axis=0),
}


def spoilt(pixels, defect):
    return np.clip(DEFECTS[defect](pixels), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_what_eyes_would_see_is_refused_in_every_precision(truth, monkeypatch, defect, precision):
    drawn = spoilt(truth.pixels, defect)
    rows = {
        latents.tobytes(): row for latents, row in zip(truth.inputs["latents"], drawn, strict=True)
    }

    def engine(_path):
        return "none", lambda feed: np.stack([rows[row.tobytes()] for row in feed["latents"]])

    monkeypatch.setattr(gate, "_onnxruntime", engine)
    monkeypatch.setattr(gate, "_openvino", engine)
    name = next(name for name, one in FILENAMES.items() if one == precision)
    with pytest.raises(UserError, match=rf"{name} is refused: over 64 pictures .* on average"):
        judge(Path(name), truth)
    rows |= dict(zip(rows, truth.pixels, strict=True))
    judge(Path(name), truth)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("published", ["now", "before the mean was judged"])
def test_the_canary_refuses_what_the_gate_refuses(truth, precision, published):
    """By the same number and bounds, in manifests from before they were written there too."""
    stated = load_bundle(SHIPPED).manifest.graphs["model.onnx"].model_dump()
    stated |= {"precision": precision, "bounds": BOUNDS[precision].model_dump()}
    if published != "now":
        del stated["bounds"]["max_mean_difference"]
        del stated["measured"]["mean_difference"], stated["measured"]["worst_mean_difference"]
    allowed = Graph.model_validate_json(json.dumps(stated)).allowed
    golden = load_bundle(SHIPPED).manifest.golden
    reference = golden.images[0]
    assert golden.mismatch(reference, truth.pixels[0], allowed) is None
    for defect in DEFECTS:
        picture = spoilt(truth.pixels, defect)[0]
        assert "on average" in golden.mismatch(reference, picture, allowed), defect
