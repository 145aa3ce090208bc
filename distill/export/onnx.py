"""One ONNX graph from latents and labels to final pixels (the signature of docs/design.md)."""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset21
from torch import Tensor

from distill.export.cpu import cancel_transposes, rewrite_wide_layers, split_group_norms
from distill.export.cuda import rewrite_for_cuda
from distill.export.one_step import FoldedGenerator
from distill.networks import Denoiser
from distill.networks.latent_space import LatentDecoder
from distill.training.precision import DTYPES
from service.bundle import CLASS_LABELS, IMAGES, LATENTS, Precision, write_atomically

# From 21 on GroupNormalization stays one node instead of ten; from 22 on Conv takes bfloat16. Not
# later than needed: engines of older servers read it, and from 23 on attention is a node that
# TensorRT refuses wherever it has no kernel of its own for it.
OPSETS: dict[Precision, int] = {"float32": 21, "float16": 21, "bfloat16": 22}


def example_inputs(generator: Denoiser, count: int) -> tuple[Tensor, ...]:
    """Latents, and class indices for a conditional network, of `count` images."""
    config = generator.config
    latents = torch.randn(count, *config.latent_shape, generator=torch.Generator().manual_seed(0))
    if not config.label_dim:
        return (latents,)
    return latents, torch.arange(count) % config.label_dim


def export_onnx(
    generator: Denoiser,
    sigma_init: float,
    path: Path,
    precision: Precision = "float32",
    *,
    cpu: bool = False,
    cuda: bool = False,
    steps: int = 1,
    decoder: LatentDecoder | None = None,
) -> None:
    """Write the graph with a dynamic batch; checked, free of local paths.

    torch's exporter records stack traces with file names of this machine in the graph's
    metadata: they are stripped, and the file is the same bytes wherever it is made.

    Args:
        generator: the network.
        sigma_init: the first noise level that it knows.
        path: the file to write.
        precision: in which the networks compute, written into the graph: engines obey, they do not
            choose.
        cpu: write it for processors (see `distill.export.cpu`); float32 only.
        cuda: write it for ONNX Runtime on NVIDIA GPUs (see `distill.export.cuda`); not bfloat16.
        steps: in how many it draws (`distill.sampling.few_step`), all of them in this one graph.
        decoder: of a generator of latents: it stands behind the network in the graph.
    """
    module = FoldedGenerator(generator, sigma_init, DTYPES[precision], steps, decoder).eval()
    inputs = example_inputs(generator, 2)
    if cpu:
        rewrite_wide_layers(module, *inputs)
    names = [LATENTS, CLASS_LABELS][: len(inputs)]
    batch = torch.export.Dim("N")
    with _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSETS[precision],
            input_names=names,
            output_names=[IMAGES],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            custom_translation_table=_SIZES_KNOWN if cuda else None,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if cpu:
        split_group_norms(model)
        model = cancel_transposes(model)
    if cuda:
        rewrite_for_cuda(model)
    _strip_metadata(model)
    _name_by_content(model)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write_bytes(content))


def _attention(
    query: Any, key: Any, value: Any, *_: Any, scale: float | None = None, **__: Any
) -> Any:
    """Attention over all [N, heads, pixels, width], without torch's arithmetic on their sizes."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scaled = opset21.Mul(query, opset21.CastLike(factor, query))  # type: ignore[type-var]
    likeness = opset21.MatMul(scaled, opset21.Transpose(key, perm=[0, 1, 3, 2]))
    return opset21.MatMul(opset21.Softmax(likeness, axis=-1), value)


_SIZES_KNOWN: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}


def _strip_metadata(model: onnx.ModelProto) -> None:
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


def _name_by_content(model: onnx.ModelProto) -> None:
    """Name the graph by a digest of itself, in place.

    Caches of compiled graphs know them by this name, which would otherwise be the same for all
    (microsoft/onnxruntime#32254).
    """
    model.graph.name = ""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    model.graph.name = f"sid_{digest[:12]}"


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
