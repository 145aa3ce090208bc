"""The gate: an engine's noise passes, what eyes would see does not, in every precision."""

import json
from pathlib import Path

import numpy as np
import pytest

import distill
from distill.errors import UserError
from distill.export import gate
from distill.export.gate import TOLERANCES, draw_reference_images, validate
from distill.export.generator import load_generator
from service.bundle import FILENAMES, Graph, load_bundle

SHIPPED = Path(distill.__file__).parents[1] / "models" / "fashion"


@pytest.fixture(scope="module")
def expected():
    """The shipped model's first 64 images; without the distance, which takes 2,000."""
    file = Path(distill.__file__).parent / "pretrained" / "fashion-generator.safetensors"
    return draw_reference_images(load_generator(file).module(), None)


@pytest.mark.slow
@pytest.mark.parametrize("name", load_bundle(SHIPPED).manifest.graphs)
def test_the_shipped_graphs_pass_and_their_images_keep_their_bounds_one_by_one(expected, name):
    bundle = load_bundle(SHIPPED)
    graph, pixels = validate(bundle.graph(name), expected)
    assert graph.bounds == bundle.manifest.graphs[name].bounds == TOLERANCES[graph.precision]
    golden = bundle.manifest.golden
    for reference, image in zip(golden.images, pixels, strict=False):
        assert golden.mismatch(reference, image, graph.bounds) is None


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
    """Of the images, as when a class is broken."""

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
    "other images": lambda pixels: np.roll(pixels, 1, axis=0),
}


def spoilt(pixels, defect):
    return np.clip(DEFECTS[defect](pixels), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_what_eyes_would_see_is_refused_in_every_precision(
    expected, monkeypatch, defect, precision
):
    drawn = spoilt(expected.pixels, defect)
    rows = {
        latents.tobytes(): row
        for latents, row in zip(expected.inputs["latents"], drawn, strict=True)
    }

    def engine(_path):
        return "none", lambda feed: np.stack([rows[row.tobytes()] for row in feed["latents"]])

    monkeypatch.setattr(gate, "_onnxruntime", engine)
    monkeypatch.setattr(gate, "_openvino", engine)
    name = next(name for name, one in FILENAMES.items() if one == precision)
    with pytest.raises(UserError, match=rf"{name} is refused: over 64 images .* on average"):
        validate(Path(name), expected)
    rows |= dict(zip(rows, expected.pixels, strict=True))
    validate(Path(name), expected)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("published", ["now", "before the mean was judged"])
def test_the_canary_refuses_what_the_gate_refuses(expected, precision, published):
    """By the same number and bounds, in manifests from before they were written there too."""
    stated = load_bundle(SHIPPED).manifest.graphs["model.onnx"].model_dump()
    stated |= {"precision": precision, "bounds": TOLERANCES[precision].model_dump()}
    if published != "now":
        del stated["bounds"]["max_mean_difference"]
        del stated["measured"]["mean_difference"], stated["measured"]["worst_mean_difference"]
    allowed = Graph.model_validate_json(json.dumps(stated)).allowed
    golden = load_bundle(SHIPPED).manifest.golden
    reference = golden.images[0]
    assert golden.mismatch(reference, expected.pixels[0], allowed) is None
    for defect in DEFECTS:
        image = spoilt(expected.pixels, defect)[0]
        assert "on average" in golden.mismatch(reference, image, allowed), defect
