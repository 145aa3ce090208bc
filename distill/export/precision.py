"""The same network in fewer bits, written into the graph: engines obey, they do not choose.

float16 and bfloat16 are the graph's own types, with float32 around the U-Net
(`distill.export.one_step`). int8 is the wide work alone, the convolutions, between quantisation
nodes whose ranges come from the generator's own pictures: no data set is needed for that.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from distill.export.onnx import example_inputs, export_onnx, strip_metadata
from distill.networks import Denoiser
from service.bundle import Precision, latents, write_atomically

_CALIBRATION_BATCHES, _BATCH = 8, 16
_CALIBRATION_SEED = 1_000_000  # far from the seeds that graphs are judged by
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_precision(
    generator: Denoiser, sigma_init: float, path: Path, precision: Precision
) -> None:
    """Write the graph of a generator in a precision (see `export_onnx`)."""
    if precision != "int8":
        export_onnx(generator, sigma_init, path, dtype=_DTYPES[precision])
        return
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        export_onnx(generator, sigma_init, plain)
        quantize_static(
            plain,
            quantised,
            _GeneratedPictures(generator),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # The first sees noise, the last makes the levels: little work, many bits.
            nodes_to_exclude=_ends(onnx.load(plain)),
        )
        model = onnx.load(quantised)
    strip_metadata(model)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write_bytes(content))


class _GeneratedPictures(CalibrationDataReader):  # type: ignore[misc]  # untyped library
    """The inputs of a few batches, whose activations give the ranges."""

    def __init__(self, generator: Denoiser) -> None:
        config = generator.config
        shape = (config.img_channels, config.img_resolution, config.img_resolution)
        conditional = len(example_inputs(generator, 1)) > 1
        self._feeds = iter(
            _feed(first, shape, config.label_dim if conditional else 0)
            for first in range(0, _CALIBRATION_BATCHES * _BATCH, _BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        return next(self._feeds, None)


def _feed(first: int, shape: tuple[int, int, int], classes: int) -> dict[str, NDArray[np.generic]]:
    seeds = range(_CALIBRATION_SEED + first, _CALIBRATION_SEED + first + _BATCH)
    feed: dict[str, NDArray[np.generic]] = {"latents": latents(seeds, shape)}
    if classes:
        feed["class_labels"] = np.array(seeds, np.int64) % classes
    return feed


def _ends(model: onnx.ModelProto) -> list[str]:
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return [names[0], names[-1]]
