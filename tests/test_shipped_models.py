"""models/ as it is committed: whole, small, drawing what it is said to draw and as well."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from distill.data.avatars import STYLES
from distill.data.datasets import FASHION_CLASSES
from distill.evaluation.features import load_extractor
from distill.evaluation.frechet import frechet_distance, statistics
from distill.evaluation.reference import load_references
from distill.export.triton import triton_config
from service.bundle import Bundle, latents, load_bundle
from service.serving.catalogue import load_contents
from service.settings import Settings

ROOT = Path(__file__).parents[1]


class Shipped(NamedTuple):
    """What a shipped model is to be: its images' shape, size on disk, and real images."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    licence: str
    megabytes: int
    features: str
    held_out: Path | None  # None: the training images that the feature extractor brings


SHIPPED = {
    "fashion": Shipped((1, 28, 28), FASHION_CLASSES, "Apache-2.0", 15, "fashion-cnn", None),
    "avatars": Shipped(
        (3, 64, 64), tuple(STYLES), "CC0-1.0", 45, "avatars-cnn",
        ROOT / "tests" / "fixtures" / "avatars_held_out.npz",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SHIPPED)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def bundle(name) -> Bundle:
    return load_bundle(ROOT / "models" / name)


@pytest.fixture(scope="module")
def draw(bundle, name) -> Callable:
    session = onnxruntime.InferenceSession(bundle.graph("model.onnx"))
    shape = SHIPPED[name].shape

    def draw(seeds, classes):
        feed = {"latents": latents(seeds, shape), "class_labels": np.array(classes, np.int64)}
        return session.run(["images"], feed)[0]

    return draw


def test_no_model_is_shipped_that_is_not_tried_here():
    assert {file.parent.name for file in ROOT.glob("models/*/manifest.json")} == set(SHIPPED)


def test_a_request_without_a_model_gets_avatars():
    assert load_contents(Settings(models=ROOT / "models")).default == "avatars"


def test_the_golden_images_are_drawn_again(bundle, draw):
    golden = bundle.manifest.golden
    assert {image.class_label for image in golden.images} == set(range(10))
    for reference in golden.images:
        (pixels,) = draw([reference.seed], [reference.class_label])
        assert golden.mismatch(reference, pixels) is None


def test_triton_is_told_what_publish_writes_today(bundle, name):
    config, today = (
        text_format.Parse(text, model_config_pb2.ModelConfig())
        for text in (
            (ROOT / "models" / name / "config.pbtxt").read_text(),
            triton_config(bundle.manifest),
        )
    )
    assert config == today


def test_its_classes_its_licence_and_its_size(bundle, name):
    shipped = SHIPPED[name]
    assert tuple(bundle.manifest.classes) == shipped.classes
    assert bundle.manifest.licence == shipped.licence
    files = (ROOT / "models" / name).rglob("*")
    assert sum(file.stat().st_size for file in files if file.is_file()) <= shipped.megabytes * 1e6


@pytest.mark.long
def test_the_stated_quality_is_measured_again_and_is_at_least_the_teachers(bundle, name, draw):
    """The first seeds, drawn by the shipped graph as anyone would be served them."""
    shipped, quality = SHIPPED[name], bundle.manifest.quality
    assert quality is not None
    assert quality.images >= 2_000
    classes = np.arange(quality.images) % 10
    pixels = np.concatenate(
        [
            draw(range(start, start + 250), classes[start : start + 250])
            for start in range(0, quality.images, 250)
        ]
    )
    extractor = load_extractor(shipped.features)
    real = extractor.reference
    if shipped.held_out is not None:
        real = load_references([shipped.held_out], [extractor])[extractor.sha256].statistics
    features, predicted = extractor.embed(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    distance = frechet_distance(statistics(features), real)
    assert distance == pytest.approx(quality.generator, rel=0.01)
    assert (predicted.numpy() == classes).mean() == pytest.approx(quality.accuracy, abs=0.002)
    assert quality.generator <= quality.teacher


@pytest.mark.long
@pytest.mark.parametrize("name", ["avatars"], indirect=True, scope="module")
def test_a_class_has_many_colours(draw):
    """Within a class the mean colours spread about as widely as the teacher's."""
    spreads = []
    for label in range(10):
        means = draw(range(100), [label] * 100).mean(axis=(1, 2)) / 127.5
        spreads.append(means.var(axis=0, ddof=1))
    assert np.sqrt(np.mean(spreads)) > 0.17  # data 0.246, teacher 0.218, a collapsed one 0.04
