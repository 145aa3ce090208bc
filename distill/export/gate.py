"""The gate: no graph is published that draws another image than float32 torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image

from distill.errors import UserError, how_to_install
from distill.evaluation.feature_extractor import FeatureExtractor
from distill.evaluation.frechet import frechet_distance, statistics
from distill.evaluation.reference import bundled_reference
from distill.export.cuda_twin import expand_nodes
from distill.export.one_step import PixelGenerator
from distill.export.overflow import LARGEST_FLOAT16, Peak, watched_peaks
from distill.methods.light_decoder import pixel_error
from distill.networks.latent_space import LatentDecoder
from service.bundle import (
    CLASS_LABELS,
    CUDA,
    FAR,
    FILENAMES,
    LATENTS,
    TOLERANCES,
    Graph,
    Imitation,
    Measured,
    Precision,
    Tolerance,
    latents,
    write_atomically,
)

Pixels = NDArray[np.uint8]
Draw = Callable[[dict[str, NDArray[Any]]], Pixels]


# The mean's bound is for 99 images in 100: one with a sharp edge may be further off, but none by
# more than so many times.
_USUAL, _OUTLIER = 0.99, 4
_COMPARED = 64  # images; with an extractor more, for the distance
_DISTANCE_IMAGES = 2000
_LARGEST_BATCH, _ALONE = 32, 8  # both ends of the dynamic batch
# Of large images fewer: each takes seconds, and memory for maps of its size.
_PIXELS_COMPARED, _FEWEST_COMPARED = 2**18, 8
_PIXELS_PER_BATCH, _SMALLEST_BATCH = 2**17, 2
# What a light decoder's images may be off: softer than those that it imitates, but the same images.
_IMITATION_MEAN, _IMITATION_FAR = 12, 0.1  # levels; share of values that are off by more than FAR


@dataclass(frozen=True)
class ReferenceImages:
    """Float32 torch's images of the first seeds, class i mod classes: what graphs must draw.

    Attributes:
        inputs: of the graph, for all images.
        pixels: uint8 [N, H, W, C].
        extractor: the feature extractor for the distance; None: it is not measured.
        batch: so many are drawn together.
        imitated: the same images by the decoder that a light one imitates; None: there is none.
        overflow: the first number beyond float16's range on the way to the first of them, if any.
    """

    inputs: dict[str, NDArray[Any]]
    pixels: Pixels
    extractor: FeatureExtractor | None
    batch: int = _LARGEST_BATCH
    imitated: Pixels | None = None
    overflow: Peak | None = None

    @cached_property
    def distance(self) -> float | None:
        """Of float32 torch's images; None: it is not measured."""
        return _distance(self.pixels, self.extractor)

    @cached_property
    def imitated_distance(self) -> float | None:
        """The same of the images that are imitated."""
        return None if self.imitated is None else _distance(self.imitated, self.extractor)


@torch.no_grad()
def draw_reference_images(
    module: PixelGenerator,
    extractor: FeatureExtractor | None,
    imitated: LatentDecoder | None = None,
) -> ReferenceImages:
    """Draw what graphs are measured against; raises UserError if the network is not finite.

    Args:
        module: the generator with its pixels.
        extractor: see `ReferenceImages`.
        imitated: the decoder that the module's light one imitates, where it is at hand.
    """
    config = module.generator.config
    _, height, width = module.image_shape
    compared = max(_FEWEST_COMPARED, _PIXELS_COMPARED // (height * width))
    batch = max(_SMALLEST_BATCH, _PIXELS_PER_BATCH // (height * width))
    batch = min(_LARGEST_BATCH, batch)
    by_distance = extractor is not None and bundled_reference(extractor) is not None
    count = _DISTANCE_IMAGES if by_distance else min(_COMPARED, compared)
    seeds = range(count)
    inputs: dict[str, NDArray[Any]] = {LATENTS: latents(seeds, config.latent_shape)}
    if config.label_dim:
        inputs[CLASS_LABELS] = np.arange(count, dtype=np.int64) % config.label_dim
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise UserError("the generator's weights are not finite: it cannot draw images")

    def draw(start: int) -> tuple[Pixels, Pixels | None]:
        stop = start + batch
        drawn = module.images(*(torch.from_numpy(rows[start:stop]) for rows in inputs.values()))
        pixels = module.pixels(drawn).numpy()
        return pixels, None if imitated is None else imitated(drawn).numpy()

    with watched_peaks(module) as peaks:
        first = draw(0)
    parts = [first, *(draw(start) for start in range(batch, count, batch))]
    of_imitated = [copy for _, copy in parts if copy is not None]
    return ReferenceImages(
        inputs,
        np.concatenate([pixels for pixels, _ in parts]),
        extractor if by_distance else None,
        batch,
        np.concatenate(of_imitated) if of_imitated else None,
        next((peak for peak in peaks if peak.overflows), None),
    )


def validate(path: Path, expected: ReferenceImages) -> tuple[Graph, Pixels]:
    """Measure a graph against float32 torch.

    Args:
        path: a graph under one of the names of a bundle, which says its precision.
        expected: what it ought to draw.

    Returns:
        Its bounds and what was measured, and the images it drew.

    Raises:
        UserError: it draws other images, or none at the ends of its dynamic batch.
    """
    precision = FILENAMES[path.name]
    engine, draw = _openvino(path) if precision == "bfloat16" else _onnxruntime(path)
    count = len(expected.pixels)
    pixels = np.concatenate(
        [
            draw(_rows(expected, start, start + expected.batch))
            for start in range(0, count, expected.batch)
        ]
    )
    alone = np.concatenate([draw(_rows(expected, row, row + 1)) for row in range(_ALONE)])
    measured = measure(engine, pixels, alone, expected)
    bounds = TOLERANCES[precision]
    canary = _levels(alone[0], expected.pixels[0])
    if not (_is_within(measured, bounds) and bounds.allow(canary)):
        if precision == "float16" and expected.overflow is not None:
            layer, size = expected.overflow
            raise UserError(
                f"{path.name} is refused: float16 ends at {LARGEST_FLOAT16:,.0f}, and {layer} "
                f"reaches {size:.3g}: leave float16 out, or take another autoencoder or snapshot"
            )
        raise UserError(f"{path.name} is refused: {_describe(measured, bounds, precision)}")
    if (imitation := measured.imitation) and not _is_close(imitation):
        raise UserError(
            f"{path.name} is refused: its light decoder differs from the one that it imitates by "
            f"{imitation.mean_difference:.1f} levels on average, and in {imitation.far_share:.1%} "
            f"of the values by more than {FAR} (allowed: {_IMITATION_MEAN} and "
            f"{_IMITATION_FAR:.0%}): train it with more --images"
        )
    return Graph(precision=precision, bounds=bounds, measured=measured), pixels


def measure(engine: str, pixels: Pixels, alone: Pixels, expected: ReferenceImages) -> Measured:
    """How far images are from float32 torch's.

    Args:
        engine: what drew them.
        pixels: uint8 [N, H, W, C], all of `expected`, drawn in batches.
        alone: the first of them again, each drawn alone.
        expected: what they ought to be.
    """
    difference = _levels(pixels, expected.pixels)
    means = difference.reshape(len(difference), -1).mean(axis=1)
    return Measured(
        engine=engine,
        images=len(pixels),
        difference=int(difference.max()),
        differing_share=float((difference > 0).mean()),
        mean_difference=float(np.quantile(means, _USUAL, method="higher")),
        worst_mean_difference=float(means.max()),
        batch_difference=int(_levels(alone, pixels[: len(alone)]).max()),
        distance_change=_change(pixels, expected.extractor, expected.distance),
        imitation=_imitation(pixels, expected),
    )


def _imitation(pixels: Pixels, expected: ReferenceImages) -> Imitation | None:
    if expected.imitated is None:
        return None
    error = pixel_error(torch.from_numpy(pixels), torch.from_numpy(expected.imitated))
    change = _change(pixels, expected.extractor, expected.imitated_distance)
    return Imitation(mean_difference=error.mean, far_share=error.far, distance_change=change)


def _is_close(imitation: Imitation) -> bool:
    return imitation.mean_difference <= _IMITATION_MEAN and imitation.far_share <= _IMITATION_FAR


def _is_within(measured: Measured, tolerance: Tolerance) -> bool:
    mean = tolerance.max_mean_difference
    return (
        measured.difference <= tolerance.max_difference
        and measured.differing_share <= tolerance.max_differing_share
        and (mean is None or (measured.mean_difference or 0) <= mean)
        and (mean is None or (measured.worst_mean_difference or 0) <= _OUTLIER * mean)
        and measured.batch_difference <= tolerance.max_difference
        and abs(measured.distance_change or 0) <= (tolerance.max_distance_change or 0)
    )


def _describe(measured: Measured, tolerance: Tolerance, precision: Precision) -> str:
    change = abs(measured.distance_change or 0)
    return (
        f"over {measured.images} images it differs from float32 torch by up to "
        f"{measured.difference} levels in {measured.differing_share:.2%} of the values, by "
        f"{measured.mean_difference:.2f} on average in 99 of 100 images and by "
        f"{measured.worst_mean_difference:.2f} in the worst, an image alone from itself in a "
        f"batch by {measured.batch_difference}, and its distance by {change:.2%} (allowed in "
        f"{precision}: {tolerance.max_difference} levels, {tolerance.max_differing_share:.0%}, on "
        f"average {tolerance.max_mean_difference} and {_OUTLIER} times that, "
        f"{tolerance.max_distance_change:.1%})"
    )


def save_report(
    path: Path, expected: ReferenceImages, drawn: Mapping[str, Pixels], columns: int = 16
) -> None:
    """Save one image to look at: torch's row, then each graph's and its difference times 32."""
    rows = [expected.pixels[:columns]]
    for pixels in drawn.values():
        difference = np.minimum(_levels(pixels, expected.pixels)[:columns] * 32, 255)
        rows += [pixels[:columns], difference.astype(np.uint8)]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    sheet = sheet.repeat(2, axis=0).repeat(2, axis=1).squeeze()
    write_atomically(path, lambda file: Image.fromarray(sheet).save(file, format="PNG"))


def _rows(expected: ReferenceImages, start: int, stop: int) -> dict[str, NDArray[Any]]:
    return {name: value[start:stop] for name, value in expected.inputs.items()}


def _levels(a: Pixels, b: Pixels) -> NDArray[np.int16]:
    return np.abs(a.astype(np.int16) - b.astype(np.int16))


def _distance(images: Pixels, extractor: FeatureExtractor | None) -> float | None:
    if extractor is None or (reference := bundled_reference(extractor)) is None:
        return None
    features, _ = extractor.embed(torch.from_numpy(images).permute(0, 3, 1, 2))
    return frechet_distance(statistics(features), reference.statistics)


def _change(
    pixels: Pixels, extractor: FeatureExtractor | None, before: float | None
) -> float | None:
    """Relative change of the distance, from that of other images."""
    if before is None or (distance := _distance(pixels, extractor)) is None:
        return None
    return distance / before - 1


def _onnxruntime(path: Path) -> tuple[str, Draw]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    name = f"onnxruntime {onnxruntime.__version__}"
    graph: Path | bytes = path
    if path.name == CUDA:  # a card's own nodes are left to the canary of the engine that has one
        graph = expand_nodes(onnx.load(path)).SerializeToString()
        name += ", nodes expanded for processors"
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return name, lambda feed: session.run(["images"], feed)[0]


def _openvino(path: Path) -> tuple[str, Draw]:
    """ONNX Runtime has no kernels for bfloat16 on processors; OpenVINO has."""
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            f"{path.name} is validated by OpenVINO: {how_to_install('openvino')}"
        ) from error
    core = openvino.Core()
    hint = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    name = f"openvino {openvino.__version__.partition('-')[0]}"
    return name, lambda feed: np.array(compiled(feed)["images"])
