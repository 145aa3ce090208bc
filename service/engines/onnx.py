"""The embedded engine: ONNX Runtime in this process, on the processors or on an NVIDIA GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from service.bundle import BASELINE, CPU
from service.engines import EngineError, Images, Inputs
from service.engines.embedded import EmbeddedEngine, Signature, check_signature
from service.extras import how_to_install

_SILENT = 4  # errors come as exceptions too; warnings are about the exporter's business
_CPU_PROVIDER, _CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    # Else what the graph calls float32 is computed with 10 bits of mantissa.
    "use_tf32": "0",
    # Not the default, which times every algorithm at every new size of a batch: that takes long
    # while requests wait, and another choice after each start draws other last bits.
    "cudnn_conv_algo_search": "HEURISTIC",
}
_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


class OnnxEngine(EmbeddedEngine):
    """One ONNX Runtime session on the processors (see `EmbeddedEngine`)."""

    name = "onnxruntime"
    reads: ClassVar[Sequence[str]] = (CPU, BASELINE)

    @classmethod
    def installed(cls) -> bool:
        """Always: it belongs to the base."""
        return True

    def _load(self, path: Path) -> Any:
        import onnxruntime

        session = self._open(path)
        check_signature(_signature(session), self._bundle.manifest, path)
        self.version = onnxruntime.__version__
        return session

    def _open(self, path: Path) -> Any:
        return open_session(path, self._threads)

    def _begin(self, session: Any) -> "_Run":
        return _Run(session)

    def _reason(self, error: Exception) -> str:
        return _first_line(error)


class CudaEngine(OnnxEngine):
    """One ONNX Runtime session on the first NVIDIA GPU (see `EmbeddedEngine`)."""

    name = "onnxruntime-cuda"
    reads: ClassVar[Sequence[str]] = (BASELINE, "model.float16.onnx")

    @classmethod
    def installed(cls) -> bool:
        """Whether this ONNX Runtime was built for CUDA; the GPU may be missing all the same."""
        import onnxruntime

        return _CUDA_PROVIDER in onnxruntime.get_available_providers()

    def _open(self, path: Path) -> Any:
        if not self.installed():
            raise EngineError(
                f"{path}: the ONNX Runtime that is installed has no {_CUDA_PROVIDER}: "
                + how_to_install("gpu")
            )
        session = open_session(path, self._threads, [(_CUDA_PROVIDER, _CUDA_OPTIONS)])
        # ONNX Runtime says nothing when it cannot have the GPU, and computes without it.
        if _CUDA_PROVIDER not in (providers := session.get_providers()):
            raise EngineError(
                f"{path}: ONNX Runtime cannot use the GPU and fell back to "
                f"{', '.join(providers)}: the driver, CUDA or cuDNN is missing or does not fit"
            )
        return session


class _Run:
    """One call of a session (see `embedded.Run`)."""

    def __init__(self, session: Any) -> None:
        import onnxruntime

        self._session = session
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _SILENT

    def __call__(self, inputs: Inputs) -> Images:
        images: Images
        (images,) = self._session.run(["images"], inputs, self._options)
        return images

    def cancel(self) -> None:
        self._options.terminate = True  # frees the thread at the graph's next node


def open_session(path: Path, threads: int, providers: Sequence[Any] = (_CPU_PROVIDER,)) -> Any:
    """Open an ONNX Runtime session.

    Raises:
        EngineError: the file is no graph that this ONNX Runtime can run.
    """
    import onnxruntime  # here: half of the process's start-up time

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    # Threads that spin between batches starve the web server when processors are few.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            path, sess_options=options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # see EmbeddedEngine
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error


def _signature(session: Any) -> Signature:
    nodes = (*session.get_inputs(), *session.get_outputs())
    return {
        node.name: (
            _TYPES.get(node.type, node.type),
            [size if isinstance(size, int | str) else "?" for size in node.shape],
        )
        for node in nodes
    }


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
