"""models/avatars as it is committed: whole, small, in colour, and as good as it is said to be."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from distill.data.avatars import STYLES
from distill.evaluation.features import load_detector
from distill.evaluation.frechet import frechet_distance, statistics
from distill.evaluation.reference import load_references
from distill.export.triton import triton_config
from service.bundle import Bundle, latents, load_bundle

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "models" / "avatars"
HELD_OUT = ROOT / "tests" / "fixtures" / "avatars_held_out.npz"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(FOLDER)


@pytest.fixture(scope="module")
def draw(bundle):
    session = onnxruntime.InferenceSession(bundle.graph("model.onnx"))

    def draw(seeds, classes):
        feed = {"latents": latents(seeds, (3, 64, 64)), "class_labels": np.array(classes, np.int64)}
        return session.run(["images"], feed)[0]

    return draw


def test_the_golden_images_are_drawn_again(bundle, draw):
    golden = bundle.manifest.golden
    assert {image.class_label for image in golden.images} == set(range(10))
    for reference in golden.images:
        (pixels,) = draw([reference.seed], [reference.class_label])
        assert golden.mismatch(reference, pixels) is None


def test_triton_is_told_what_publish_writes_today(bundle):
    assert (FOLDER / "config.pbtxt").read_text() == triton_config(bundle.manifest)


def test_it_has_the_ten_styles_is_in_the_public_domain_and_at_most_40_mb(bundle):
    assert tuple(bundle.manifest.classes) == tuple(STYLES)
    assert bundle.manifest.licence == "CC0-1.0"
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert size <= 40e6


def test_it_is_what_a_request_without_a_model_gets():
    assert (ROOT / "models" / "DEFAULT").read_text().strip() == "avatars"


def test_the_stated_quality_is_measured_again_and_is_at_least_the_teachers(bundle, draw):
    """Its seeds, drawn by the shipped graph as anyone would be served them."""
    quality = bundle.manifest.quality
    assert quality is not None
    classes = np.arange(quality.images) % 10
    pixels = np.concatenate(
        [
            draw(range(start, start + 250), classes[start : start + 250])
            for start in range(0, quality.images, 250)
        ]
    )
    detector = load_detector("avatars-cnn")
    held_out = load_references([HELD_OUT], [detector])[detector.sha256]
    features, predicted = detector.embed(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    distance = frechet_distance(statistics(features), held_out.statistics)
    assert distance == pytest.approx(quality.generator, rel=0.01)
    assert (predicted.numpy() == classes).mean() == pytest.approx(quality.accuracy, abs=0.002)
    assert quality.generator <= quality.teacher


def test_a_class_has_many_colours(draw):
    """Within a class the mean colours spread as widely as the teacher's, and not as one colour."""
    spreads = []
    for label in range(10):
        means = draw(range(100), [label] * 100).mean(axis=(1, 2)) / 127.5
        spreads.append(means.var(axis=0, ddof=1))
    assert np.sqrt(np.mean(spreads)) > 0.17  # data 0.246, teacher 0.218, a collapsed one 0.04
