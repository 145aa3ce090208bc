"""TensorRT: a plan from the graph, for the GPU at hand, or for others by TensorRT for RTX.

Precision is the graph's own (networks are strongly typed); a plan differs from its graph only in
the kernels that were chosen. It works on the GPU and the TensorRT release it was built with.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.export.triton import MAX_BATCH_SIZE
from service.bundle import write_atomically

_TYPICAL_BATCH = 8  # the size that kernels are chosen for


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
        UserError: the library is not installed, finds no GPU, or cannot build the graph.
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
    config = trt_builder.create_builder_config()
    profile = trt_builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        batches = (1, min(_TYPICAL_BATCH, max_batch_size), max_batch_size)
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
