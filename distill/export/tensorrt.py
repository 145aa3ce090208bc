"""TensorRT: a plan from the graph, for the GPU at hand, or for others by TensorRT for RTX.

Precision is the graph's own (networks are strongly typed); a plan differs from its graph only in
the kernels that were chosen. It works on the GPU and the TensorRT release it was built with.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

import onnx

from distill.errors import UserError
from distill.export.triton import MAX_BATCH_SIZE
from distill.export.triton_gpu import TYPICAL_BATCH
from service.bundle import write_atomically


class Builder(StrEnum):
    """Which library builds, as it is named on the command line."""

    tensorrt = "tensorrt"  # NVIDIA's tensorrt package; needs the GPU
    rtx = "tensorrt-rtx"  # tensorrt-rtx-cu13; needs none, for GeForce and RTX cards


# Those that TensorRT for RTX builds for: Turing, Ampere, Ada and Blackwell cards.
RTX_CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120")


def build_plan(
    graph: Path,
    plan: Path,
    builder: Builder = Builder.tensorrt,
    max_batch_size: int = MAX_BATCH_SIZE,
    capability: str | None = None,
) -> None:
    """Build a plan whose one optimisation profile takes 1 to `max_batch_size` images.

    Args:
        graph: the .onnx file, in the precision that is wanted.
        plan: the file to write.
        builder: the library.
        max_batch_size: the largest batch; kernels are chosen for 8, or for it if it is less.
        capability: of `RTX_CAPABILITIES`, to build for a card that is not here.

    Raises:
        UserError: the library is not installed, finds no GPU, or cannot build the graph; or
            TensorRT would compute it wrongly (see `require_group_norms_that_tensorrt_computes`).
    """
    library = _load(builder)
    logger = _Messages(library)
    try:
        trt_builder = library.Builder(logger)
    except TypeError:  # its constructor returned nothing
        raise UserError(f"{builder} finds no GPU here: {logger.last}") from None
    flags = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt_builder.create_network(flags)
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise UserError(f"{graph}: {builder} cannot read it: {parser.get_error(0).desc()}")
    require_group_norms_that_tensorrt_computes(graph)
    config = trt_builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # float32 means float32, as in every engine
    profile = trt_builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        batches = (1, min(TYPICAL_BATCH, max_batch_size), max_batch_size)
        profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in batches))
    config.add_optimization_profile(profile)
    if capability is not None:
        if builder is not Builder.rtx or capability not in RTX_CAPABILITIES:
            raise UserError(
                f"{capability}: only {Builder.rtx} builds for a card that is not here, one of "
                f"{', '.join(RTX_CAPABILITIES)}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, capability), 0)
    built = trt_builder.build_serialized_network(network, config)
    if built is None:
        raise UserError(f"{graph}: {builder} cannot build it: {logger.last}")
    content = bytes(memoryview(built))
    write_atomically(plan, lambda file: file.write_bytes(content))


def require_group_norms_that_tensorrt_computes(graph: Path) -> None:
    """Refuse a graph with a GroupNormalization of one group.

    TensorRT 10.16.1 normalises each channel by itself there (NVIDIA/TensorRT#4756), and draws
    another image without a word.

    Args:
        graph: an .onnx file.

    Raises:
        UserError: it has one.
    """
    for node in onnx.load(graph, load_external_data=False).graph.node:
        groups = {one.name: one.i for one in node.attribute}.get("num_groups")
        if node.op_type == "GroupNormalization" and groups == 1:
            raise UserError(
                f"{graph.name} has a normalisation over one group ({node.name or node.output[0]}), "
                "which TensorRT computes as another: a network with 8 channels or more at each "
                "level has several groups"
            )


def _load(builder: Builder) -> Any:
    try:
        if builder is Builder.rtx:
            import tensorrt_rtx as library
        else:
            import tensorrt as library
    except ImportError as error:
        package = "tensorrt-rtx-cu13" if builder is Builder.rtx else "tensorrt"
        raise UserError(f"{builder} is not installed: pip install {package} ({error})") from None
    return library


def _Messages(library: Any) -> Any:
    class Messages(library.ILogger):  # type: ignore[misc]  # untyped library
        """Keeps the last error for the one line that people get."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.ERROR:
                self.last = message.splitlines()[0][:300]

    return Messages()
