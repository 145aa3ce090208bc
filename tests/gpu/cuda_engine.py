"""The CUDA engine as the sections use it: whether it is here, and how the gateway makes it."""

from service.bundle import Bundle
from service.engines import Engine
from service.engines.onnx import CudaEngine, OnnxEngine


def engine_missing(*, toy: bool) -> str | None:
    """Why there is no engine that could be measured here; None: there is one."""
    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError:
        return "ONNX Runtime is not installed (onnxruntime-gpu is what a card needs)"
    if toy or CudaEngine.installed():
        return None
    return "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"


def make_engine(bundle: Bundle, *, toy: bool) -> Engine:
    """The engine as the gateway makes it for SID_ENGINE=cuda and SID_PRECISION=float16."""
    if toy:
        return OnnxEngine(bundle, threads=1, concurrency=1)
    return CudaEngine(bundle, precision="float16", threads=1, concurrency=2)
