"""models/fashion as it is committed: whole, small, and drawing what it is said to draw."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from distill.data.datasets import FASHION_CLASSES
from distill.evaluation.features import load_detector
from distill.evaluation.frechet import frechet_distance, statistics
from distill.export.triton import triton_config
from service.bundle import Bundle, latents, load_bundle
from service.serving.catalogue import load_contents
from service.settings import Settings

FOLDER = Path(__file__).parents[1] / "models" / "fashion"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(FOLDER)


@pytest.fixture(scope="module")
def draw(bundle):
    session = onnxruntime.InferenceSession(bundle.graph("model.onnx"))

    def draw(seeds, classes):
        feed = {"latents": latents(seeds, (1, 28, 28)), "class_labels": np.array(classes, np.int64)}
        return session.run(["images"], feed)[0]

    return draw


def test_the_golden_images_are_drawn_again(bundle, draw):
    golden = bundle.manifest.golden
    assert {image.class_label for image in golden.images} == set(range(10))
    for reference in golden.images:
        (pixels,) = draw([reference.seed], [reference.class_label])
        assert golden.mismatch(reference, pixels) is None


def test_a_request_without_a_model_gets_avatars_if_they_are_there():
    there = (FOLDER.parent / "avatars").is_dir()
    assert load_contents(Settings(models=FOLDER.parent)).default == (
        "avatars" if there else "fashion"
    )


def test_triton_is_told_what_publish_writes_today(bundle):
    assert (FOLDER / "config.pbtxt").read_text() == triton_config(bundle.manifest)


def test_it_is_class_conditional_and_at_most_15_mb(bundle):
    assert tuple(bundle.manifest.classes) == FASHION_CLASSES
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert size <= 15e6


def test_the_stated_quality_is_measured_again(bundle, draw):
    """The first 10,000 seeds, drawn by the shipped graph as anyone would be served them."""
    quality = bundle.manifest.quality
    assert quality is not None
    classes = np.arange(quality.images) % 10
    pixels = np.concatenate(
        [
            draw(range(start, start + 250), classes[start : start + 250])
            for start in range(0, quality.images, 250)
        ]
    )
    detector = load_detector("fashion-cnn")
    features, predicted = detector.embed(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    distance = frechet_distance(statistics(features), detector.reference)
    assert distance == pytest.approx(quality.generator, rel=0.01)
    accuracy = (predicted.numpy() == classes).mean()
    assert accuracy == pytest.approx(quality.accuracy, abs=0.002)
    assert json.loads((FOLDER / "manifest.json").read_text())["quality"]["images"] == 10_000
