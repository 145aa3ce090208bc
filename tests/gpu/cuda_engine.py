"""The CUDA engine as the sections use it: whether it is here, and how the gateway makes it."""

from service.bundle import Bundle
from service.engines import Engine
from service.serving import engine_selection
from service.settings import Settings


def engine_missing(*, toy: bool) -> str | None:
    """Why there is no engine that could be measured here; None: there is one."""
    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError:
        return "ONNX Runtime is not installed (onnxruntime-gpu is what a card needs)"
    if toy or engine_selection.ENGINES["cuda"].installed():
        return None
    return "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"


async def make_engine(bundle: Bundle, *, largest_batch: int, toy: bool) -> Engine:
    """The engine as the gateway makes it for SID_ENGINE=cuda and SID_PRECISION=float16."""
    settings = Settings(engine="cuda", precision="float16", max_batch_size=largest_batch)
    if toy:
        settings = Settings(engine="onnxruntime", threads=1, concurrency=1)
    (engine,) = await engine_selection.make_engines(bundle, settings)
    return engine
