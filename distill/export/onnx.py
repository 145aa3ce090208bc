"""One ONNX graph from latents and labels to final pixels (the signature of docs/design.md)."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from distill.checkpoints import write_atomically
from distill.images import to_pixels
from distill.networks import Denoiser
from distill.sampling import one_step

OPSET = 21  # from 21 on GroupNormalization stays one node instead of ten


class PixelGenerator(nn.Module):
    """Latents and class indices in, uint8 pixels out: what every engine computes."""

    one_hot: Tensor

    def __init__(self, generator: Denoiser, sigma_init: float) -> None:
        super().__init__()
        self.generator, self.sigma_init = generator, sigma_init
        self.register_buffer("one_hot", torch.eye(generator.config.label_dim))

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map float32 [N, C, H, W] and int64 [N] to uint8 [N, H, W, C]."""
        labels = None if class_labels is None else self.one_hot[class_labels]
        return to_pixels(one_step(self.generator, latents, labels, self.sigma_init))


def example_inputs(generator: Denoiser, count: int) -> tuple[Tensor, ...]:
    """Latents, and class indices for a conditional network, of `count` images."""
    config = generator.config
    shape = (count, config.img_channels, config.img_resolution, config.img_resolution)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if not config.label_dim:
        return (latents,)
    return latents, torch.arange(count) % config.label_dim


def export_onnx(generator: Denoiser, sigma_init: float, path: Path) -> None:
    """Write the float32 graph with a dynamic batch; checked, free of local paths.

    torch's exporter records stack traces with file names of this machine in the graph's
    metadata: they are stripped, and the file is the same bytes wherever it is made.
    """
    module = PixelGenerator(generator.cpu().eval(), sigma_init).eval()
    inputs = example_inputs(generator, 2)
    names = ["latents", "class_labels"][: len(inputs)]
    batch = torch.export.Dim("N")
    with _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["images"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip_metadata(model)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write_bytes(content))


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove every metadata property and documentation string of a graph, in place."""
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for initializer in graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own deprecations and its notes on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
