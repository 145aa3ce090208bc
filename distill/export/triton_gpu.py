"""What config.pbtxt says for GPUs: how the onnxruntime and tensorrt backends compute there.

A Triton without a GPU reads past it: its instances are of the kind KIND_CPU.
"""

from service.bundle import FILENAMES, Manifest

# Where TensorRT keeps what it has built: a volume in docker-compose.yml.
ENGINE_CACHE = "/var/cache/tensorrt"
TYPICAL_BATCH = (
    8  # the size that TensorRT chooses kernels for; a gateway sends 8 at most by default
)
# ONNX Runtime's own defaults draw other images than those published: float32 in TF32, with 10 bits
# of mantissa, and whichever algorithm was the fastest when each size of batch came first.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_PRECISION_MODES = {"float32": "FP32", "float16": "FP16"}
_DIGITS = 12  # of a graph's digest


def execution_accelerators(
    manifest: Manifest, graph: str, max_batch_size: int, *, tensorrt: bool
) -> list[str]:
    """The lines that the onnxruntime backend reads for its instances on GPUs.

    The accelerator named cuda exists since Triton 24.07. A backend that finds any `parameters`
    takes its search from there, whatever the accelerator says, and searches exhaustively if they
    do not name one: so both do (1 is HEURISTIC).

    Args:
        manifest: of the bundle.
        graph: the file of the version's folder that Triton serves.
        max_batch_size: the largest batch.
        tensorrt: have TensorRT compute what it can, before CUDA.
    """
    options = {"cuda": _CUDA_OPTIONS}
    if tensorrt:
        options = {"tensorrt": _tensorrt_options(manifest, graph, max_batch_size)} | options
    return [
        "parameters {",
        '  key: "cudnn_conv_algo_search" value { string_value: "1" }',
        "}",
        "optimization { execution_accelerators {",
        *(line for name, values in options.items() for line in _accelerator(name, values)),
        "} }",
    ]


def plan_optimization(max_batch_size: int) -> list[str]:
    """The lines that the tensorrt backend reads: a CUDA graph for each usual size of batch.

    For each up to what one gateway sends, and for what several gateways' batches add up to; a
    batch of another size is computed without one.
    """
    usual = range(1, min(TYPICAL_BATCH, max_batch_size) + 1)
    sizes = dict.fromkeys([*usual, max_batch_size // 2 or 1, max_batch_size])
    return [
        "optimization { cuda {",
        "  graphs: true",
        *(f"  graph_spec {{ batch_size: {size} }}" for size in sizes),
        "  output_copy_stream: true",
        "} }",
    ]


def profile_shapes(manifest: Manifest, batch: int) -> str:
    """The graph's inputs for one size of batch as TensorRT's tools write them: `latents:8x1x28x28`.

    Args:
        manifest: of the bundle.
        batch: images.
    """
    shapes = {one.name: (batch, *one.shape) for one in manifest.inputs}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _tensorrt_options(manifest: Manifest, graph: str, max_batch_size: int) -> dict[str, str]:
    digest = manifest.files[f"{manifest.version}/{graph}"][:_DIGITS]
    return {
        "precision_mode": _PRECISION_MODES[FILENAMES[graph]],
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": ENGINE_CACHE,
        # Without it, two graphs with the same name and inputs get each other's engine
        # (onnxruntime#32254). Two versions share a prefix: `export_onnx` names graphs by content.
        "trt_engine_cache_prefix": f"{manifest.name}-{manifest.version}-{digest}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": ENGINE_CACHE,
        # One profile for every size of batch; else each new size has it built again, for minutes.
        "trt_profile_min_shapes": profile_shapes(manifest, 1),
        "trt_profile_opt_shapes": profile_shapes(manifest, min(TYPICAL_BATCH, max_batch_size)),
        "trt_profile_max_shapes": profile_shapes(manifest, max_batch_size),
    }


def _accelerator(name: str, values: dict[str, str]) -> list[str]:
    return [
        "  gpu_execution_accelerator {",
        f'    name: "{name}"',
        *(f'    parameters {{ key: "{key}" value: "{value}" }}' for key, value in values.items()),
        "  }",
    ]
