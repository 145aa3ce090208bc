"""Triton's configuration of a bundle (config.pbtxt), written from its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.export.triton_gpu import execution_accelerators, plan_optimization
from service.bundle import BASELINE, GPU_PIXELS, IMAGES, PLAN, Input, Manifest, batch_limit

MAX_BATCH_SIZE = 32  # of images up to 128x128
# Two batches at a time: on processors, with one thread each, that draws more than one batch on
# two threads (docs/results/serving.md); on a GPU one copies while the other computes.
INSTANCES, THREADS = 2, 1
# What waits in Triton was admitted by a gateway, which has a queue of its own. A full queue tells
# gateways to refuse (429); what waits so long has nobody left that wants it.
QUEUE_REQUESTS, QUEUE_SECONDS = 64, 10
VERSIONS = 2  # as many as `publish` keeps
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


@dataclass(frozen=True)
class TritonOptions:
    """Which of a bundle's graphs Triton serves, and by what.

    Attributes:
        precision: in which the graph computes.
        tensorrt: have ONNX Runtime compute it by TensorRT where there is a GPU.
        plan: TensorRT's plan of that graph, which is served instead of it; None: there is none.
    """

    precision: Literal["float32", "float16"] = "float32"
    tensorrt: bool = False
    plan: Path | None = None

    @property
    def source(self) -> str:
        """The portable graph, in the version's folder: the one served, or what the plan is of."""
        return BASELINE if self.precision == "float32" else f"model.{self.precision}.onnx"


DEFAULT_OPTIONS = TritonOptions()


def triton_config(
    manifest: Manifest,
    *,
    graph: str = BASELINE,
    tensorrt: bool = False,
    queue_requests: int = QUEUE_REQUESTS,
) -> str:
    """Return config.pbtxt: for the onnxruntime backend, or for the tensorrt one if it is a plan.

    Batches are whatever waits when an instance frees up (no delay), as in the gateway. The last
    two versions are served, so that gateways can go from one to the next at any time.

    Args:
        manifest: of the bundle.
        graph: the file of the version's folder that Triton serves.
        tensorrt: have ONNX Runtime compute the graph by TensorRT where there is a GPU.
        queue_requests: requests, of up to the largest batch each, that may wait.
    """
    largest = max_batch_size(manifest.images)
    inputs = [_input(one) for one in manifest.inputs]
    warmup = [_warmup(one) for one in manifest.inputs]
    lines = [
        "# Written by sid-distill publish; not to be edited by hand (docs/operations.md).",
        f'name: "{manifest.name}"',
        f'backend: "{"tensorrt" if graph == PLAN else "onnxruntime"}"',
        *([] if graph == BASELINE else [f'default_model_filename: "{graph}"']),
        f"max_batch_size: {largest}",
        f"version_policy {{ latest {{ num_versions: {VERSIONS} }} }}",
        "input [",
        ",\n".join(inputs),
        "]",
        f'output [ {{ name: "{IMAGES}" data_type: TYPE_UINT8 {_dims(manifest.images)} }} ]',
        "dynamic_batching {",
        "  default_queue_policy {",
        f"    max_queue_size: {queue_requests}",
        f"    default_timeout_microseconds: {QUEUE_SECONDS * 1_000_000}",
        "    timeout_action: REJECT",
        "    allow_timeout_override: true  # a request may bring its own, which is shorter",
        "  }",
        "}",
        *(_plan(largest) if graph == PLAN else _onnx(manifest, graph, largest, tensorrt)),
    ]
    for size in sorted({1, largest}):  # ready means: memory for any batch is there
        lines += ["model_warmup {", f'  name: "{size}" batch_size: {size}', *warmup, "}"]
    return "\n".join([*lines, "response_cache { enable: false }", ""])


def max_batch_size(images: Sequence[int]) -> int:
    """The largest batch that Triton computes of images [H, W, C]: fewer of large ones."""
    return batch_limit(MAX_BATCH_SIZE, images, GPU_PIXELS)


def _onnx(manifest: Manifest, graph: str, largest: int, tensorrt: bool) -> list[str]:
    return [
        "# On every GPU there is, otherwise on the processors.",
        f"instance_group [ {{ kind: KIND_AUTO count: {INSTANCES} }} ]",
        "parameters {",
        f'  key: "intra_op_thread_count" value {{ string_value: "{THREADS}" }}',
        "}",
        *execution_accelerators(manifest, graph, largest, tensorrt=tensorrt),
    ]


def _plan(largest: int) -> list[str]:
    return [
        f"instance_group [ {{ kind: KIND_GPU count: {INSTANCES} }} ]",
        *plan_optimization(largest),
    ]


def _input(one: Input) -> str:
    # A number an image: the graph takes [N], and Triton knows no input of less than [N, 1].
    reshape = "" if one.shape else " reshape { shape: [ ] }"
    return f'  {{ name: "{one.name}" data_type: {_TYPES[one.dtype]} {_dims(one.shape)}{reshape} }}'


def _warmup(one: Input) -> str:
    value = f"data_type: {_TYPES[one.dtype]} {_dims(one.shape)} zero_data: true"
    return f'  inputs {{ key: "{one.name}" value {{ {value} }} }}'


def _dims(shape: Sequence[int]) -> str:
    return f"dims: [ {', '.join(map(str, shape or (1,)))} ]"
