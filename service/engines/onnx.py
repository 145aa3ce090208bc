"""The embedded engine: ONNX Runtime in this process, on the processors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from service.bundle import BASELINE, CPU
from service.engines import EngineError, Images, Inputs
from service.engines.embedded import EmbeddedEngine, Run, Signature, check_signature

SILENT = 4  # errors come as exceptions too; warnings are about the exporter's business
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
        return self._open(path, ["CPUExecutionProvider"])

    def _open(self, path: Path, providers: Sequence[Any]) -> Any:
        """A session whose signature is right; raises EngineError naming the file."""
        import onnxruntime

        try:
            session = open_session(path, self._threads, providers)
        except Exception as error:  # see EmbeddedEngine
            reason = self._reason(error)
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {reason}") from error
        check_signature(_signature(session), self._bundle.manifest, path)
        self.version = onnxruntime.__version__
        return session

    def _begin(self, session: Any) -> Run:
        return _Run(session)

    def _reason(self, error: Exception) -> str:
        return first_line(str(error)) or type(error).__name__


class _Run:
    """One call of a session (see `embedded.Run`)."""

    def __init__(self, session: Any) -> None:
        import onnxruntime

        self._session = session
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = SILENT

    def __call__(self, inputs: Inputs) -> Images:
        images: Images
        (images,) = self._session.run(["images"], inputs, self._options)
        return images

    def cancel(self) -> None:
        self._options.terminate = True  # frees the thread at the graph's next node


def open_session(
    path: Path, threads: int, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> Any:
    """Open an ONNX Runtime session; raises whatever ONNX Runtime raises.

    Args:
        path: the graph.
        threads: of one inference.
        providers: what computes: names, or pairs of a name and its options.
    """
    import onnxruntime  # here: half of the process's start-up time

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    # Threads that spin between batches starve the web server when processors are few.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        path, sess_options=options, providers=list(providers), enable_fallback=0
    )


def first_line(message: str) -> str:
    """The first line of a library's message; "" of none."""
    return next(iter(message.splitlines()), "")


def _signature(session: Any) -> Signature:
    nodes = (*session.get_inputs(), *session.get_outputs())
    return {
        node.name: (
            _TYPES.get(node.type, node.type),
            [size if isinstance(size, int | str) else "?" for size in node.shape],
        )
        for node in nodes
    }
